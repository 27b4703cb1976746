#include "tests/formats/vdi/memory_vdi.h"

#include <utility>

#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/vdi/vdi_format.h"
#include "gtest/gtest.h"

namespace spindle::testing {

std::string new_vdi(uint64_t disk_bytes, bool is_static) {
  const auto memory = std::make_shared<MemoryDriver>();
  CreateOptions options;
  options.size_bytes = disk_bytes;
  if (is_static) options.options["static"] = "on";
  const absl::Status status =
      vdi::vdi_format()->create(memory, options, OpenContext{});
  EXPECT_TRUE(status.ok()) << status;
  return memory->content();
}

MemoryVdi::MemoryVdi(absl::string_view content,
                     MemoryDriver::Options memory_options)
    : memory(std::make_shared<MemoryDriver>(std::move(memory_options))),
      file(std::make_shared<ObservingDriver>(memory)) {
  memory->set_content(0, content);
}

absl::Status MemoryVdi::open(const OpenOptions& options) {
  driver = nullptr;
  auto opened = vdi::vdi_format()->open(file, options, OpenContext{});
  if (!opened.ok()) return opened.status();
  driver = *std::move(opened);
  return absl::OkStatus();
}

absl::Status write_fill(BlockDriver& driver, ByteRange range, char value) {
  std::string bytes(range.length, value);
  return driver.write(IoVector(bytes.data(), bytes.size()),
                      Sector::from_byte_offset(range.offset));
}

std::string read_range(BlockDriver& driver, ByteRange range) {
  std::string bytes(range.length, '?');
  const absl::Status status =
      driver.read(IoVector(bytes.data(), bytes.size()),
                  Sector::from_byte_offset(range.offset));
  return status.ok() ? bytes : status.ToString();
}

absl::StatusOr<CheckResult> check_bytes(absl::string_view content) {
  MemoryVdi image(content);
  OpenOptions options;
  options.for_check = true;
  absl::Status status = image.open(options);
  if (!status.ok()) return status;
  return image.driver->check({});
}

}  // namespace spindle::testing

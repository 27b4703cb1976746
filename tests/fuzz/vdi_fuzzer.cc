// Fuzzes a VDI image: what is done to it, then the file.
//
// What is said to read as zeroes does; what is written is read back, now and
// after the image was opened anew; an image that is refused is as it was.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/vdi/vdi_format.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/fuzz_file.h"

namespace spindle::testing {
namespace {

constexpr int kMaxMapSteps = 32;
constexpr uint64_t kMaxReadBytes = uint64_t{16} << 10;

// The byte in each sector that was written.
using Model = std::map<uint64_t, uint8_t>;

absl::StatusOr<std::shared_ptr<BlockDriver>> open(
    const std::shared_ptr<FuzzFile>& file, OpenOptions options = {}) {
  return vdi::vdi_format()->open(file, options, OpenContext{});
}

absl::StatusOr<std::vector<uint8_t>> read(BlockDriver& driver, uint64_t offset,
                                          uint64_t bytes) {
  std::vector<uint8_t> buffer(bytes, 0x5a);
  absl::Status status = driver.read(IoVector(buffer.data(), buffer.size()),
                                    Sector::from_byte_offset(offset));
  if (!status.ok()) return status;
  return buffer;
}

void look(BlockDriver& driver) {
  const uint64_t end = driver.length_bytes();
  uint64_t offset = 0;
  for (int step = 0; step < kMaxMapSteps && offset < end; ++step) {
    const absl::StatusOr<BlockStatus> status = driver.block_status(
        {offset, end - offset}, BlockStatusScope::kWholeChain);
    if (!status.ok()) break;
    require(status->length > 0 && status->length <= end - offset,
            "a block status has a length, within what was asked for");
    // What a static image's file says may end within a sector.
    const uint64_t next =
        std::min(align_up(offset + status->length, kSectorSizeBytes), end);
    const auto content =
        read(driver, offset, std::min(next - offset, kMaxReadBytes));
    if (content.ok() && status->zero && is_sector_aligned(status->length)) {
      require(std::all_of(content->begin(), content->end(),
                          [](uint8_t byte) { return byte == 0; }),
              "what is said to read as zeroes does");
    }
    offset = next;
  }
}

void look_without_writing(absl::string_view image) {
  for (const bool for_check : {false, true}) {
    const auto file = std::make_shared<FuzzFile>(image, /*read_only=*/true);
    OpenOptions options;
    options.read_only = true;
    options.for_check = for_check;
    const auto driver = open(file, options);
    if (!driver.ok()) continue;
    static_cast<void>((*driver)->info());
    require((*driver)->check({}).ok(), "what opens can be checked");
    look(**driver);
    (*driver)->close().IgnoreError();
  }
}

void must_hold(BlockDriver& driver, const Model& model) {
  for (const auto& [offset, value] : model) {
    const auto content = read(driver, offset, kSectorSizeBytes);
    require(content.ok(), "what was written can be read");
    require(content->front() == value && content->back() == value,
            "what was written is read back");
  }
}

// Small numbers are sectors from the start; large ones spread over the disk.
uint64_t offset_of(uint8_t place, uint64_t sectors) {
  const uint64_t sector = place < 128 ? place * uint64_t{7}
                                      : sectors / 128 * (place - uint64_t{127});
  return std::min(sector, sectors - 1) * kSectorSizeBytes;
}

void use(BlockDriver& driver, absl::Span<const uint8_t> program, Model* model) {
  const uint64_t sectors = driver.length_bytes() / kSectorSizeBytes;
  if (sectors == 0) return;
  for (size_t i = 0; i + 1 < program.size(); i += 2) {
    if (program[i] % 4 == 0) {
      driver.flush().IgnoreError();
      continue;
    }
    const uint64_t offset = offset_of(program[i + 1], sectors);
    const uint64_t bytes =
        std::min<uint64_t>(1 + program[i] % 8, sectors - offset / 512) * 512;
    std::vector<uint8_t> buffer(bytes, program[i]);
    if (driver
            .write(IoVector(buffer.data(), buffer.size()),
                   Sector::from_byte_offset(offset))
            .ok()) {
      for (uint64_t at = 0; at < bytes; at += kSectorSizeBytes)
        (*model)[offset + at] = program[i];
    } else {
      for (uint64_t at = 0; at < bytes; at += kSectorSizeBytes)
        model->erase(offset + at);
    }
  }
}

void fuzz(absl::Span<const uint8_t> program, absl::string_view image) {
  look_without_writing(image);
  const auto file = std::make_shared<FuzzFile>(image);
  const auto driver = open(file);
  if (!driver.ok()) {
    require(file->content() == image, "an image that is refused is as it was");
    return;
  }
  Model model;
  use(**driver, program, &model);
  must_hold(**driver, model);
  look(**driver);
  if (!(*driver)->close().ok()) return;
  const auto again = open(file);
  require(again.ok(), "what was used can be opened again");
  must_hold(**again, model);
}

}  // namespace
}  // namespace spindle::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using spindle::testing::kProgramBytes;
  if (size < kProgramBytes) return 0;
  spindle::testing::fuzz(absl::MakeConstSpan(data, kProgramBytes),
                         {reinterpret_cast<const char*>(data) + kProgramBytes,
                          size - kProgramBytes});
  return 0;
}

#include "tests/differential/our_image.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"

namespace spindle::testing {

Executor* shared_executor() {
  // Lives as long as the process.
  static Executor* const executor =
      make_executor(
          {.width = 4, .name = "differential", .interleaving_seed = 1})
          .release();
  return executor;
}

absl::StatusOr<std::unique_ptr<BlockDevice>> open_ours(
    const ImageFile& image, bool read_only, const OptionMap& driver_options) {
  const ImageOpener opener(builtin_drivers(), {});
  OpenOptions options;
  options.read_only = read_only;
  options.driver_options = driver_options;
  auto driver = opener.open(image.path, image.format, options);
  if (!driver.ok()) return driver.status();
  return BlockDevice::create(*std::move(driver), shared_executor());
}

absl::StatusOr<std::vector<uint8_t>> read_everything(BlockDevice& device) {
  std::vector<uint8_t> content(device.length_bytes());
  uint64_t piece = 512;
  for (uint64_t offset = 0; offset < content.size();) {
    const uint64_t length = std::min(piece, content.size() - offset);
    const absl::Status status =
        device.pread(IoVector(content.data() + offset, length), offset);
    if (!status.ok()) return status;
    offset += length;
    piece = piece * 3 % ((1 << 20) - 1) + 1;
  }
  return content;
}

absl::StatusOr<std::vector<uint8_t>> qemu_content(const ImageFile& image) {
  const ImageFile raw{temporary_path("content"), "raw"};
  const absl::Status status = qemu_convert(image, raw, "");
  if (!status.ok()) return status;
  auto content = read_file(raw.path);
  ::unlink(raw.path.c_str());
  return content;
}

}  // namespace spindle::testing

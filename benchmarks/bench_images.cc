#include "benchmarks/bench_images.h"

#include <unistd.h>

#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "tests/support/model_disk.h"

namespace spindle::benchmarks {

FilledImages::FilledImages(const std::string& directory, uint64_t bytes)
    : stem_(absl::StrCat(directory, "/spindle-ratios.", ::getpid())),
      bytes_(bytes) {}

FilledImages::~FilledImages() {
  ::unlink(raw().path.c_str());
  ::unlink(qcow2().path.c_str());
}

absl::Status FilledImages::make() const {
  std::FILE* file = std::fopen(raw().path.c_str(), "wb");
  if (file == nullptr)
    return absl::InternalError(absl::StrCat("cannot create ", raw().path));
  std::vector<uint8_t> piece(1 << 20);
  bool good = true;
  for (uint64_t offset = 0; offset < bytes_; offset += piece.size()) {
    testing::stamp_content(1, offset, absl::MakeSpan(piece));
    good = std::fwrite(piece.data(), 1, piece.size(), file) == piece.size() &&
           good;
  }
  good = std::fclose(file) == 0 && good;
  if (!good)
    return absl::InternalError(absl::StrCat("cannot write ", raw().path));
  return testing::qemu_convert(raw(), qcow2(), "");
}

FreshImage::FreshImage(const std::string& directory, uint64_t bytes)
    : file_{absl::StrCat(directory, "/spindle-ratios.", ::getpid(),
                         ".fresh.qcow2"),
            "qcow2"},
      bytes_(bytes) {}

FreshImage::~FreshImage() { ::unlink(file_.path.c_str()); }

absl::Status FreshImage::make(const std::string& options) const {
  ::unlink(file_.path.c_str());
  testing::QemuCreate create;
  create.image = file_;
  create.size_bytes = bytes_;
  create.options = options;
  return testing::qemu_create(create);
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_driver(
    const testing::ImageFile& image, bool read_only) {
  const ImageOpener opener(builtin_drivers(), {});
  OpenOptions options;
  options.read_only = read_only;
  return opener.open(image.path, image.format, options);
}

absl::StatusOr<HostPlaces> host_places(const testing::ImageFile& image,
                                       uint64_t piece_bytes) {
  auto driver = open_driver(image, /*read_only=*/true);
  if (!driver.ok()) return driver.status();
  HostPlaces places{piece_bytes, {}};
  const uint64_t end = (*driver)->length_bytes();
  for (uint64_t offset = 0; offset < end;) {
    const absl::StatusOr<BlockStatus> status = (*driver)->block_status(
        {offset, end - offset}, BlockStatusScope::kThisLayer);
    if (!status.ok()) return status.status();
    if (!status->host_offset.has_value() || status->length % piece_bytes != 0) {
      return absl::InternalError(absl::StrCat(
          image.path, " holds no plain data at guest offset ", offset));
    }
    for (uint64_t at = 0; at < status->length; at += piece_bytes)
      places.offsets.push_back(*status->host_offset + at);
    offset += status->length;
  }
  const absl::Status closed = (*driver)->close();
  if (!closed.ok()) return closed;
  return places;
}

OpenDevice::OpenDevice(std::unique_ptr<CompletionQueue> queue,
                       std::unique_ptr<BlockDevice> device)
    : queue_(std::move(queue)), device_(std::move(device)) {}

absl::StatusOr<std::unique_ptr<OpenDevice>> OpenDevice::open(
    const testing::ImageFile& image, Executor* executor, DeviceChoice choice) {
  auto driver = open_driver(image, choice.read_only);
  if (!driver.ok()) return driver.status();
  auto queue = CompletionQueue::create(
      {.poll_limit = absl::Microseconds(choice.poll_us)});
  if (!queue.ok()) return queue.status();
  BlockDeviceOptions options;
  options.name = image.format;
  options.run_in_place = choice.run_in_place;
  options.completion_queue = queue->get();
  auto device =
      BlockDevice::create(*std::move(driver), executor, std::move(options));
  if (!device.ok()) return device.status();
  return std::unique_ptr<OpenDevice>(
      new OpenDevice(*std::move(queue), *std::move(device)));
}

}  // namespace spindle::benchmarks

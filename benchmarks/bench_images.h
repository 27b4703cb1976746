// The images that the ratios are measured on, and devices over them.
//
// Thread safety: none; one thread measures.
#ifndef SPINDLE_BENCHMARKS_BENCH_IMAGES_H_
#define SPINDLE_BENCHMARKS_BENCH_IMAGES_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "benchmarks/offsets.h"
#include "engine/block_device.h"
#include "engine/block_driver.h"
#include "engine/completion_queue.h"
#include "tests/support/qemu_tools.h"
#include "threadpool/executor.h"

namespace spindle::benchmarks {

// Raw and qcow2 with the same content, removed at the end.
class FilledImages {
 public:
  FilledImages(const std::string& directory, uint64_t bytes);
  ~FilledImages();
  FilledImages(const FilledImages&) = delete;
  FilledImages& operator=(const FilledImages&) = delete;

  absl::Status make() const;
  testing::ImageFile raw() const { return {stem_ + ".raw", "raw"}; }
  testing::ImageFile qcow2() const { return {stem_ + ".qcow2", "qcow2"}; }

 private:
  const std::string stem_;
  const uint64_t bytes_;
};

// An empty qcow2 image, made anew as often as it is asked for.
class FreshImage {
 public:
  FreshImage(const std::string& directory, uint64_t bytes);
  ~FreshImage();
  FreshImage(const FreshImage&) = delete;
  FreshImage& operator=(const FreshImage&) = delete;

  // By qemu-img; `options` as after -o.
  absl::Status make(const std::string& options = {}) const;
  const testing::ImageFile& file() const { return file_; }
  uint64_t bytes() const { return bytes_; }

 private:
  const testing::ImageFile file_;
  const uint64_t bytes_;
};

absl::StatusOr<std::shared_ptr<BlockDriver>> open_driver(
    const testing::ImageFile& image, bool read_only);

// Where `image`, which is full of data, holds each `piece_bytes` of its disk; a
// piece must lie within a cluster.
absl::StatusOr<HostPlaces> host_places(const testing::ImageFile& image,
                                       uint64_t piece_bytes);

struct DeviceChoice {
  bool read_only = true;
  bool run_in_place = false;
  int poll_us = 0;
};

// A device of its own over `image`, with its completion queue.
class OpenDevice {
 public:
  static absl::StatusOr<std::unique_ptr<OpenDevice>> open(
      const testing::ImageFile& image, Executor* executor, DeviceChoice choice);
  BlockDevice& operator*() const { return *device_; }

 private:
  OpenDevice(std::unique_ptr<CompletionQueue> queue,
             std::unique_ptr<BlockDevice> device);
  std::unique_ptr<CompletionQueue> queue_;
  std::unique_ptr<BlockDevice> device_;  // destroyed first
};

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_BENCH_IMAGES_H_

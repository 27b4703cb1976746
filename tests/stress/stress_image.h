// StressImage: an image under a ModelDisk, made by qemu-img, opened over a
// driver that asserts at each I/O that the calling thread holds no metadata
// mutex, and judged by qemu-img when it was closed.
//
// Thread safety: one thread opens, closes and judges.
#ifndef SPINDLE_TESTS_STRESS_STRESS_IMAGE_H_
#define SPINDLE_TESTS_STRESS_STRESS_IMAGE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_device.h"
#include "engine/format.h"
#include "tests/support/model_disk.h"
#include "tests/support/qemu_tools.h"
#include "threadpool/executor.h"

namespace spindle::testing {

struct StressVariant {
  std::string name;
  std::string format = "raw";
  uint64_t length_bytes = 4 << 20;
  // As after qemu-img's -o.
  std::string create_options;
  // Empty: no backing file.
  std::string backing_format;
  uint64_t backing_bytes = 0;
  // The image starts as a compressed copy of data.
  bool compressed = false;
  // A discarded range may show the backing file (version 2).
  bool discard_shows_backing = false;
  OptionMap open_options;
  // Flushes cost nothing there, so that more of the rest happens.
  bool on_tmpfs = false;
  // Encrypted, with one passphrase.  `create_options` and, for a backing file
  // that is qcow2, `backing_options` say how.
  bool encrypted = false;
  std::string backing_options;
  // The disk stays as long as it is: what it gains would not be zeroes.
  bool fixed_length = false;
  // Of the workload.
  uint64_t most_sectors = 64;
};

class StressImage {
 public:
  // Makes the files.
  static absl::StatusOr<std::unique_ptr<StressImage>> create(
      const StressVariant& variant);
  // Removes them.
  ~StressImage();

  ModelDisk& model() { return *model_; }

  // REQUIRES: executor outlives the device; at most one device at a time.
  absl::StatusOr<std::unique_ptr<BlockDevice>> open(Executor* executor,
                                                    BlockDeviceOptions options,
                                                    bool read_only) const;

  // Reads everything through `device` and compares it with the model; the
  // content, if it is right.
  absl::StatusOr<std::vector<uint8_t>> verify(BlockDevice& device);

  // qemu-img check, of formats that it checks, and compare.  REQUIRES: the
  // image is closed.
  absl::Status judge(const std::vector<uint8_t>& content) const;

 private:
  explicit StressImage(const StressVariant& variant);
  // Where all its files lie, with a slash at the end.
  std::string folder() const;
  absl::Status make_files() const;
  // With our own formats: qemu-img gives up where a short measurement of how
  // fast keys are derived finds no processor time used.
  absl::Status create_encrypted(const QemuCreate& create) const;
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_driver(
      const ImageFile& image, bool read_only, const OptionMap& options) const;

  const StressVariant variant_;
  const ImageFile image_;
  const ImageFile backing_;
  const ImageFile flat_;
  std::unique_ptr<ModelDisk> model_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_STRESS_STRESS_IMAGE_H_

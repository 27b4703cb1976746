// MemoryImage: an image in memory, open, with an ObservingDriver between the
// format and the file, so that a test can stop and fail what it chooses.  It is
// a qcow2, unless another format is asked for.
//
// It owns the file, the backing file if there is one, and the open driver.
// What should not fail (creating, opening) ends the process if it does.
//
// Thread safety: the data path as BlockDriver; everything else one thread.
#ifndef SPINDLE_TESTS_FORMATS_QCOW2_MEMORY_IMAGE_H_
#define SPINDLE_TESTS_FORMATS_QCOW2_MEMORY_IMAGE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/secret_store.h"
#include "engine/sector.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::testing {

enum class Leaks {
  kForbidden,
  kAllowed,
  // A COPIED flag may disagree with its refcount, too: what a crash inside a
  // snapshot operation may leave (snapshots.h).
  kAllowedWithCopiedFlags,
};

// What opens the encrypted images that are made here.
inline constexpr char kTestPassphrase[] = "opensesame";
// A store with that as "secret0", and something else as "wrong".
std::shared_ptr<const SecretStore> test_secrets();

// What `qemu-img check` says about an image with these bytes; an encrypted one
// is opened with kTestPassphrase.
// What `qemu-img check` says about a qcow2 image with these bytes.
absl::Status check_image_bytes(const std::string& bytes, Leaks leaks);
// What a check of ours finds in an image of this format, for those that
// qemu-img does not check.
absl::Status check_own_bytes(const ImageFormat& format,
                             const std::string& bytes);

// Requests on a driver with plain values.
absl::Status write_fill(BlockDriver& driver, ByteRange range, uint8_t value);
absl::StatusOr<std::string> read_bytes(BlockDriver& driver, ByteRange range);
// True if every byte of `range` is `value`.
::testing::AssertionResult reads_as(BlockDriver& driver, ByteRange range,
                                    uint8_t value);

struct MemoryImageOptions {
  const ImageFormat* format = nullptr;  // null: qcow2
  uint64_t size_bytes = uint64_t{1} << 20;
  OptionMap create = {};
  OptionMap open = {};
  // "aes" or "luks"; empty: not encrypted.
  std::string encryption = {};
  // The content of a raw backing file; empty: no backing file.
  std::string backing = {};
  // The file's bytes instead of a new image.
  std::string bytes = {};
  // The file cannot grow beyond this: ENOSPC.
  uint64_t max_file_bytes = UINT64_MAX;
};

class MemoryImage {
 public:
  explicit MemoryImage(MemoryImageOptions options);
  ~MemoryImage();

  BlockDriver& driver() { return *driver_; }
  // Between the format and its file, or its backing file.
  ObservingDriver& file() { return *observed_file_; }
  ObservingDriver& backing() { return *observed_backing_; }
  MemoryDriver& memory() { return *memory_; }

  absl::Status write(ByteRange range, uint8_t value) {
    return write_fill(*driver_, range, value);
  }
  absl::Status discard(ByteRange range) { return driver_->discard(range); }
  absl::Status flush() { return driver_->flush(); }
  ::testing::AssertionResult reads_as(ByteRange range, uint8_t value) {
    return testing::reads_as(*driver_, range, value);
  }
  // Where the byte at `guest` lives in the file, if the image has it there.
  std::optional<uint64_t> host_of(uint64_t guest);

  // Closes the driver; afterwards open() or the destructor.
  absl::Status close();
  absl::Status open(bool read_only = false);
  // Closes the image, and asks the other implementation about it, or ours where
  // that does not know.
  absl::Status close_and_check(Leaks leaks = Leaks::kForbidden);
  // The same for other bytes.
  absl::Status check(const std::string& bytes, Leaks leaks) const;

  // Opens the image in `file` as this one is opened, over the same backing
  // file.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_over(
      std::shared_ptr<BlockDriver> file, bool read_only = false) const;
  // Opens other bytes for reading, over this image's backing file.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_copy(
      const std::string& bytes) const;
  // What opens this image, and copies of it.
  OpenOptions open_options() const;
  // Opens this image's backing file for whoever asks.
  OpenContext context() const;

 private:
  const ImageFormat& format() const;

  const MemoryImageOptions options_;
  const std::string backing_path_;
  const std::shared_ptr<MemoryDriver> memory_;
  const std::shared_ptr<MemoryDriver> backing_memory_;
  const std::shared_ptr<ObservingDriver> observed_backing_;
  std::shared_ptr<ObservingDriver> observed_file_;
  std::shared_ptr<BlockDriver> driver_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW2_MEMORY_IMAGE_H_

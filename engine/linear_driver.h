// LinearDriver: the simplest thing that can be made into a block driver.
//
// It reads and writes one linear buffer at a time: no vectors, no asynchronous
// I/O, and, if it likes, no thread safety.  BounceDriver gives it the vectored,
// thread-safe interface that everything else expects.
//
// Thread safety: length_bytes(), read_only() and the questions about its nature
// may be asked by any thread at any time.  If one_at_a_time(), the other calls
// never overlap; else any thread may make them at any time.
//
// How to write one: docs/how-to-write-a-driver.md.
#ifndef SPINDLE_ENGINE_LINEAR_DRIVER_H_
#define SPINDLE_ENGINE_LINEAR_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/image_check.h"
#include "engine/sector.h"

namespace spindle {

class LinearDriver {
 public:
  LinearDriver() = default;
  LinearDriver(const LinearDriver&) = delete;
  LinearDriver& operator=(const LinearDriver&) = delete;
  virtual ~LinearDriver() = default;

  // Transfers exactly `length_bytes` bytes or returns an error.  What lies
  // beyond the end, within the last alignment_bytes(), reads as zeroes and is
  // not written.
  // REQUIRES: address, length and offset are multiples of alignment_bytes();
  // length_bytes <= max_transfer_bytes() unless that is 0; the range ends
  // within the last alignment_bytes(); for write(), !read_only().
  virtual absl::Status read(void* to, size_t length_bytes,
                            uint64_t offset_bytes) = 0;
  virtual absl::Status write(const void* from, size_t length_bytes,
                             uint64_t offset_bytes) = 0;
  // Makes every completed write durable.
  virtual absl::Status flush() = 0;

  // For messages.
  virtual absl::string_view format_name() const = 0;
  virtual std::string filename() const { return {}; }

  virtual uint64_t length_bytes() const = 0;
  virtual bool read_only() const = 0;
  // A power of two, at least 512.
  virtual uint32_t alignment_bytes() const { return kSectorSizeBytes; }
  // 0: any.
  virtual size_t max_transfer_bytes() const { return 0; }
  // Whether its calls must not overlap.  The safe answer unless it says
  // otherwise.
  virtual bool one_at_a_time() const { return true; }
  // As DriverLimits::optimal_transfer_bytes.
  virtual uint32_t optimal_transfer_bytes() const { return 0; }
  virtual std::optional<StorageIdentity> identity() const {
    return std::nullopt;
  }
  // As BlockDriver::below().
  virtual BlockDriver* below() const { return nullptr; }
  // Adds what it knows to the format, name and size that stand there.
  virtual void add_to_info(ImageInfo* info) const { static_cast<void>(info); }

  // ---- Optional operations, as in BlockDriver ------------------------------
  //
  // Each is called only if capabilities() announces it; there are no others.

  virtual Capabilities capabilities() const { return {}; }
  virtual absl::Status discard(ByteRange range) {
    static_cast<void>(range);
    return not_announced();
  }
  virtual absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) {
    static_cast<void>(range), static_cast<void>(flags);
    return not_announced();
  }
  virtual absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                                   BlockStatusScope scope) {
    static_cast<void>(range), static_cast<void>(scope);
    return not_announced();
  }
  virtual absl::StatusOr<CheckResult> check(const CheckOptions& options) {
    static_cast<void>(options);
    return not_announced();
  }
  virtual absl::Status reopen(const ReopenOptions& options) {
    static_cast<void>(options);
    return not_announced();
  }

  // Called once, when no other call is in progress; afterwards only the
  // destructor is.
  virtual absl::Status close() {
    return read_only() ? absl::OkStatus() : flush();
  }

 private:
  static absl::Status not_announced() {
    return absl::UnimplementedError("an operation that is not announced");
  }
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_LINEAR_DRIVER_H_

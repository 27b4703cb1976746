// LinearDriver: the simplest thing that can be made into a block driver.
//
// It reads and writes one linear buffer at a time: no vectors, no asynchronous
// I/O, and, if it likes, no thread safety.  BounceDriver gives it the vectored,
// thread-safe interface that everything else expects.
//
// Thread safety: length_bytes(), read_only() and the questions about its nature
// may be asked by any thread at any time.  If one_at_a_time(), the other calls
// never overlap; else any thread may make them at any time.
#ifndef SPINDLE_ENGINE_LINEAR_DRIVER_H_
#define SPINDLE_ENGINE_LINEAR_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
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

  // Called once, when no other call is in progress; afterwards only the
  // destructor is.
  virtual absl::Status close() {
    return read_only() ? absl::OkStatus() : flush();
  }
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_LINEAR_DRIVER_H_

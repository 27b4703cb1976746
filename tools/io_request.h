// One request of a spindle-io command: its memory, its pattern, its report.
// The same for commands that wait and for those that do not.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_IO_REQUEST_H_
#define SPINDLE_TOOLS_IO_REQUEST_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/block_driver.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "tools/io_command.h"
#include "tools/io_flags.h"
#include "tools/io_image.h"

namespace spindle {

// What commands write unless told otherwise, and find in memory that they read
// into.
inline constexpr uint8_t kWritePattern = 0xcd;
inline constexpr uint8_t kReadFill = 0xab;

class IoRequest {
 public:
  // A request for `lengths` one after the other, each in its own segment.
  // Out of range, it has no memory: it will fail.
  IoRequest(IoImage& image, const IoFlags& flags, uint64_t offset,
            const std::vector<uint64_t>& lengths, uint8_t fill);

  uint64_t offset() const { return offset_; }
  uint64_t length_bytes() const { return length_bytes_; }
  const IoFlags& flags() const { return flags_; }
  // kOutOfRange beyond the end of the image.
  absl::Status check_range() const;
  // What to hand to the device; may be empty.
  IoVector qiov();
  // What of it there is an image for.
  ByteRange range() const;
  WriteZeroesFlags zeroes_flags() const;
  absl::Span<uint8_t> bytes() { return buffer_.bytes(); }

  // Whether bytes [from, from + count) are what -P says; a message if not.
  bool verify(uint64_t from, uint64_t count);
  // Reports what was asked for, in `elapsed`; dumps before it, if asked to.
  void report(const char* verb);

 private:
  IoImage& image_;
  const IoFlags flags_;
  const uint64_t offset_;
  const std::vector<uint64_t> lengths_;
  const uint64_t length_bytes_;
  IoBuffer buffer_;
  const absl::Time start_;
};

// argv from `first` on as lengths.  Nothing, and a message, if one is wrong or
// they are too much together.
std::optional<std::vector<uint64_t>> read_lengths(const IoCall& call,
                                                  int first);

// "read failed: ..."
IoOutcome report_failure(const char* what, const absl::Status& status);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_REQUEST_H_

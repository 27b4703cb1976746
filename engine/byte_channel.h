// ByteChannel: a byte-granular view over any driver's sectors.
//
// Formats touch their own files at offsets that are not sector-aligned; this
// is the one place that knows how to do that over a driver that only knows
// sectors.  Aligned accesses go straight through, without a copy.  A ragged
// write becomes a read-modify-write of the sectors at its two ends at the
// child's real request alignment, serialised against other writes by range and
// by nothing else.  Memory that the child cannot take is bounced.
//
// Reads beyond the end of the child give zeroes.  Writes beyond the end make
// the child longer, to the exact byte; where it cannot grow (a host_device)
// they fail with kResourceExhausted and ENOSPC.
//
// Every access carries its purpose, and the child's AccessObserver, if it has
// one, is asked before each.
//
// Thread safety: any thread may call any method at any time.  Holds no lock
// while it waits for the child, only the byte range that it writes: exclusively
// for a ragged write, shared with other writes for an aligned one.
#ifndef SPINDLE_ENGINE_BYTE_CHANNEL_H_
#define SPINDLE_ENGINE_BYTE_CHANNEL_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/access.h"
#include "engine/aligned_buffer.h"
#include "engine/block_driver.h"
#include "engine/io_vector.h"
#include "engine/range_tracker.h"

namespace spindle {

class ByteChannel {
 public:
  // Shares ownership of `child`.  REQUIRES: child != nullptr.
  explicit ByteChannel(std::shared_ptr<BlockDriver> child);
  ~ByteChannel();

  BlockDriver& child() const { return *child_; }

  // Fills `qiov` from byte `offset` on; zeroes beyond the child's end.
  absl::Status read(Purpose purpose, const IoVector& qiov, uint64_t offset);
  absl::Status read(Purpose purpose, void* to, size_t length_bytes,
                    uint64_t offset);

  // As BlockDriver::try_read: how many bytes from the front were read without
  // blocking.  Only for aligned ranges that end within the child; 0 otherwise,
  // and 0 if the child has an observer.
  uint64_t try_read(Purpose purpose, const IoVector& qiov, uint64_t offset);
  uint64_t try_write(Purpose purpose, const IoVector& qiov, uint64_t offset);

  absl::Status write(Purpose purpose, const IoVector& qiov, uint64_t offset);
  absl::Status write(Purpose purpose, const void* from, size_t length_bytes,
                     uint64_t offset);

  absl::Status flush(Purpose purpose = Purpose::kFlushToDisk);

  // Hole-punches what is aligned in `range`; advice: fails only if the child
  // reports an error.
  absl::Status discard(Purpose purpose, ByteRange range);

  // Makes `range` read as zeroes, by the child's write_zeroes or, where it has
  // none or `range` is ragged, by writing.  Beyond the end the child grows.
  absl::Status write_zeroes(Purpose purpose, ByteRange range,
                            WriteZeroesFlags flags);

  absl::StatusOr<BlockStatus> block_status(ByteRange range);

  // Errors: kResourceExhausted with ENOSPC if the child cannot grow.
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode);

  uint64_t length_bytes() const { return child_->length_bytes(); }

 private:
  enum class Direction { kRead, kWrite };

  absl::Status observe(Purpose purpose, AccessKind kind, ByteRange range);
  absl::Status check_writable(ByteRange range) const;
  bool is_ragged(ByteRange range) const;
  // True if the child takes this request as it is.
  bool is_direct(const IoVector& qiov, uint64_t offset) const;
  // The end of the child's last sector, of its own alignment.
  uint64_t stored_end(uint64_t child_length_bytes) const;

  // The pieces of read() and write(), from the outside in; those that end in
  // _held need the range held, as write() and write_zeroes() do.
  absl::Status read_stored(const IoVector& qiov, uint64_t offset);
  absl::Status read_unit(uint64_t offset, uint8_t* to,
                         uint64_t child_length_bytes);
  absl::Status write_aligned_held(const IoVector& qiov, uint64_t offset);
  absl::Status write_ragged_held(const IoVector& qiov, uint64_t offset);
  absl::Status make_room_held(uint64_t end);
  absl::Status zero_held(ByteRange range, WriteZeroesFlags flags);
  absl::Status zero_aligned_held(ByteRange range, WriteZeroesFlags flags);
  absl::Status write_zero_bytes_held(ByteRange range);

  // Aligned requests: handed to the child as they are where possible, else
  // split or bounced as its limits ask for.
  absl::Status transfer(Direction direction, const IoVector& qiov,
                        uint64_t offset);
  absl::Status transfer_split(Direction direction, const IoVector& qiov,
                              uint64_t offset);
  absl::Status transfer_bounced(Direction direction, const IoVector& qiov,
                                uint64_t offset);
  absl::Status call_child(Direction direction, const IoVector& qiov,
                          uint64_t offset);
  uint64_t direct_prefix_bytes(const IoVector& qiov) const;

  const std::shared_ptr<BlockDriver> child_;
  AccessObserver* const observer_;
  const DriverLimits limits_;
  const Capabilities capabilities_;
  const uint64_t alignment_mask_;
  RangeTracker ranges_;
  AlignedBufferPool buffers_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_BYTE_CHANNEL_H_

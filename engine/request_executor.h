// RequestExecutor: what a request means, on the thread that runs it.
//
// It checks a request before anything else happens, and then turns it into
// calls that the driver takes: byte-granular requests become read-modify-writes
// where they must, what the driver lacks is emulated, writes are made durable
// where that was asked for.  It knows nothing of queues and threads.
//
// Does not own the driver.
//
// Thread safety: every method from any thread, but nothing may be under way
// during refresh().  Writes that overlap a read-modify-write wait for it, and
// the other way round; nobody else waits.
#ifndef SPINDLE_ENGINE_REQUEST_EXECUTOR_H_
#define SPINDLE_ENGINE_REQUEST_EXECUTOR_H_

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/driver_transfer.h"
#include "engine/io_vector.h"
#include "engine/range_tracker.h"
#include "engine/request.h"

namespace spindle {

class RequestExecutor {
 public:
  // One attempt to run a request.
  struct Attempt {
    // Wait for requests that overlap; else give up.
    bool may_wait = true;
    // It gave up, and has done nothing: the status means nothing, and the
    // request is to be run again from the start.
    bool gave_up = false;
  };

  RequestExecutor(BlockDriver* driver, CacheMode cache_mode,
                  DetectZeroes detect_zeroes);
  RequestExecutor(const RequestExecutor&) = delete;
  RequestExecutor& operator=(const RequestExecutor&) = delete;

  // What the driver said about itself when it was last asked: refresh().
  uint64_t length_bytes() const {
    return length_bytes_.load(std::memory_order_relaxed);
  }
  bool read_only() const { return read_only_.load(std::memory_order_relaxed); }
  Capabilities capabilities() const { return capabilities_; }
  void refresh();

  CacheMode cache_mode() const {
    return cache_mode_.load(std::memory_order_relaxed);
  }
  void set_cache_mode(CacheMode mode) {
    cache_mode_.store(mode, std::memory_order_relaxed);
  }
  void set_detect_zeroes(DetectZeroes mode) {
    detect_zeroes_.store(mode, std::memory_order_relaxed);
  }

  // True of requests that gain nothing by running beside each other.
  bool takes_turns(const RequestSpec& spec) const {
    return spec.kind == RequestKind::kWrite &&
           transfer_.limits().writes_take_turns && !must_be_durable(spec);
  }

  // True if `next`, which was submitted after `last`, goes on where that ends,
  // so that one transfer can do both.
  bool adjoin(const RequestSpec& last, const RequestSpec& next) const;

  // Errors: kInvalidArgument, kOutOfRange, kPermissionDenied, kUnimplemented.
  absl::Status check(const RequestSpec& spec) const;

  // Does as much of a read or a write, from its front, as can be done without
  // blocking; returns how many bytes that were.
  // REQUIRES: check(spec) is OK.
  uint64_t try_in_place(const RequestSpec& spec, const IoVector& qiov);

  // Does the request, but for the first `done_bytes`, which try_in_place() did.
  // `block_status` is set by a request of that kind, and may be null for
  // others. REQUIRES: check(spec) is OK.
  absl::Status run(const RequestSpec& spec, const IoVector& qiov,
                   uint64_t done_bytes, BlockStatus* block_status,
                   Attempt* attempt);
  // True if requests of that kind hold ranges for which others wait.
  static bool holds_ranges(RequestKind kind) {
    return kind == RequestKind::kWrite || kind == RequestKind::kDiscard ||
           kind == RequestKind::kWriteZeroes ||
           kind == RequestKind::kWriteCompressed;
  }

 private:
  absl::Status check_range(const RequestSpec& spec) const;
  absl::Status check_compressed(const RequestSpec& spec) const;
  bool is_aligned_to_driver(uint64_t offset, uint64_t length) const;
  // `range` cut off at the end of the image.
  ByteRange clamp(ByteRange range) const;
  // `range` made larger, to whole blocks of the request alignment.
  ByteRange widen(ByteRange range) const;
  // Where aligned transfers that reach to the end of the image may end.
  uint64_t transfer_end(uint64_t end) const;

  absl::Status read(const IoVector& qiov, uint64_t offset);
  absl::Status read_ragged(const IoVector& qiov, uint64_t offset);
  absl::Status write(const RequestSpec& spec, const IoVector& qiov,
                     uint64_t offset, Attempt* attempt);
  absl::Status put(const IoVector& qiov, uint64_t offset, Attempt* attempt);
  absl::Status put_ragged(const IoVector& qiov, uint64_t offset,
                          Attempt* attempt);
  absl::Status read_modify_write(const IoVector& qiov, uint64_t offset);
  absl::Status put_compressed(const IoVector& qiov, uint64_t offset,
                              Attempt* attempt);
  absl::Status put_compressed_bounced(const IoVector& qiov, uint64_t offset);
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags,
                            Attempt* attempt);
  absl::Status write_zeroes_aligned(ByteRange range, WriteZeroesFlags flags);
  absl::Status write_zeroes_piece(ByteRange range, WriteZeroesFlags flags);
  absl::Status write_zeroes_ragged(ByteRange range);
  absl::Status write_zeroes_around(ByteRange range, WriteZeroesFlags flags);
  absl::Status discard(ByteRange range, Attempt* attempt);
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope);
  absl::Status flush();
  bool must_be_durable(const RequestSpec& spec) const;

  BlockDriver* const driver_;
  std::atomic<CacheMode> cache_mode_;
  DriverTransfer transfer_;
  Capabilities capabilities_;  // changed by refresh() only
  // What compressed writes are made of; likewise.
  uint64_t cluster_bytes_ = kSectorSizeBytes;
  std::atomic<uint64_t> length_bytes_{0};
  std::atomic<bool> read_only_{false};
  std::atomic<DetectZeroes> detect_zeroes_;
  // Writes hold their range shared, read-modify-writes exclusively.
  RangeTracker ranges_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_REQUEST_EXECUTOR_H_

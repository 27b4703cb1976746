// BlockDevice: what an embedder holds.
//
// It checks every request (range, alignment, read-only, capability), splits it
// at the driver's limits, emulates what the driver lacks, and gives every
// driver alike an asynchronous face.  Synchronous calls run on the caller's
// thread.  Asynchronous calls return at once and complete exactly once: through
// the device's CompletionQueue, or by a callback on a pool thread.  Where there
// are no threads, or a request ran where it stood (run_in_place), the
// completion, callback or not, is queued and runs in reap().
//
// Offsets and lengths are in bytes unless the type says Sector.  Sector calls
// are for 512-byte multiples; the byte-granular ones (pread, pwrite) take any
// offset and length and do a read-modify-write where they must.
//
// Thread safety: any thread may call any method at any time, except that
// nobody may use the device once its destructor has begun.  Requests that
// overlap in time and in range are not ordered, as on a disk.
//
// Locks: every mutex of the device, of its requests and of its completion
// queue is a leaf, held for a few instructions; none is held while the driver,
// a callback or the executor is called.  The one thing that is held across a
// call to the driver is the byte range of a write (range_tracker.h).
#ifndef SPINDLE_ENGINE_BLOCK_DEVICE_H_
#define SPINDLE_ENGINE_BLOCK_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/aio.h"
#include "engine/aio_handle.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/completion_queue.h"
#include "engine/device_counters.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/request.h"
#include "engine/sector.h"
#include "threadpool/executor.h"

namespace spindle {

struct BlockDeviceOptions {
  std::string name = {};
  CacheMode cache_mode = CacheMode::kWriteback;
  DetectZeroes detect_zeroes = DetectZeroes::kOff;
  // The most requests that are started and not yet complete; others wait in
  // order of arrival.  0: no limit.
  size_t max_in_flight = 0;
  // The most pool workers that may run this device's requests; 0: the pool's
  // choice, below its width.
  size_t max_workers = 0;
  // A request that cannot block (the page cache has it, the file is on tmpfs)
  // may run inside the submitting call.  Off: the submitting thread never does
  // I/O.
  bool run_in_place = false;
  // Of the requests between a plug and its unplug, only so many run inside the
  // submitting calls: the pool shares the rest, so that a large batch neither
  // holds up the submitting thread nor leaves the other processors idle.
  size_t max_in_place_per_plug = 16;
  // Reads, or writes, of one plug that adjoin and together are no longer than
  // this run as one transfer; 0: never.  Requests with callbacks do not: what
  // one callback waits for may be another.
  size_t merge_bytes = size_t{64} << 10;
  // Where completions without a callback go, and callbacks of requests that
  // ran in place.  Not owned; must outlive the device.  Null: the device makes
  // one of its own.
  CompletionQueue* completion_queue = nullptr;
  LogSink log = {};
};

class BlockDevice {
 public:
  // Shares ownership of `driver`.  `executor` must outlive the device.
  // Errors: kInvalidArgument for options that contradict each other or the
  // driver.
  static absl::StatusOr<std::unique_ptr<BlockDevice>> create(
      std::shared_ptr<BlockDriver> driver, Executor* executor,
      BlockDeviceOptions options = {});
  // Does what close() does; logs its error.  Callbacks that wait in a queue of
  // the device's own run here.  REQUIRES: not inside a callback of this device.
  ~BlockDevice();
  BlockDevice(const BlockDevice&) = delete;
  BlockDevice& operator=(const BlockDevice&) = delete;

  uint64_t length_bytes() const;
  bool read_only() const;
  CacheMode cache_mode() const;
  BlockDriver& driver() const;
  CompletionQueue& completion_queue() const;

  // ---- Synchronous: on the caller's thread ---------------------------------
  // Transfers by the byte end at the last byte; everything else may reach to
  // the end of the last, partial sector.
  // Errors of all: kOutOfRange beyond the end, kInvalidArgument for a length or
  // offset that is not a multiple of 512 (sector calls), kPermissionDenied for
  // a change to a read-only device, kFailedPrecondition after close(), or what
  // the driver reports.

  absl::Status read(const IoVector& qiov, Sector sector);
  absl::Status write(const IoVector& qiov, Sector sector,
                     WriteFlags flags = {});
  absl::Status pread(const IoVector& qiov, uint64_t offset_bytes);
  absl::Status pwrite(const IoVector& qiov, uint64_t offset_bytes,
                      WriteFlags flags = {});
  absl::Status flush();
  absl::Status discard(ByteRange range);
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags = {});
  // Whole clusters, of which the last may end at the end of the image; see
  // BlockDriver::write_compressed.  Errors: kUnimplemented too.
  absl::Status write_compressed(const IoVector& qiov, Sector sector,
                                WriteFlags flags = {});
  absl::StatusOr<BlockStatus> block_status(
      ByteRange range, BlockStatusScope scope = BlockStatusScope::kWholeChain);

  // ---- Asynchronous --------------------------------------------------------
  // Each takes either `user_data`, and completes through completion_queue(), or
  // a callback.  The memory that `qiov` names must stay until completion; the
  // IoVector itself need not.  Argument errors, too, arrive as completions.  A
  // read that hits allocates nothing in steady state.  A request that the
  // executor does not take (it has stopped, or this is a fork) completes with
  // kUnavailable, in the completion queue.

  AioHandle aio_readv(Sector sector, const IoVector& qiov, uint64_t user_data);
  AioHandle aio_readv(Sector sector, const IoVector& qiov,
                      AioCallback callback);
  AioHandle aio_writev(Sector sector, const IoVector& qiov, uint64_t user_data,
                       WriteFlags flags = {});
  AioHandle aio_writev(Sector sector, const IoVector& qiov,
                       AioCallback callback, WriteFlags flags = {});
  AioHandle aio_preadv(uint64_t offset_bytes, const IoVector& qiov,
                       uint64_t user_data);
  AioHandle aio_preadv(uint64_t offset_bytes, const IoVector& qiov,
                       AioCallback callback);
  AioHandle aio_pwritev(uint64_t offset_bytes, const IoVector& qiov,
                        uint64_t user_data, WriteFlags flags = {});
  AioHandle aio_pwritev(uint64_t offset_bytes, const IoVector& qiov,
                        AioCallback callback, WriteFlags flags = {});
  AioHandle aio_flush(uint64_t user_data);
  AioHandle aio_flush(AioCallback callback);
  AioHandle aio_discard(ByteRange range, uint64_t user_data);
  AioHandle aio_discard(ByteRange range, AioCallback callback);
  AioHandle aio_write_zeroes(ByteRange range, WriteZeroesFlags flags,
                             uint64_t user_data);
  AioHandle aio_write_zeroes(ByteRange range, WriteZeroesFlags flags,
                             AioCallback callback);
  AioHandle aio_write_compressed(Sector sector, const IoVector& qiov,
                                 uint64_t user_data, WriteFlags flags = {});
  AioHandle aio_write_compressed(Sector sector, const IoVector& qiov,
                                 AioCallback callback, WriteFlags flags = {});
  AioHandle aio_block_status(ByteRange range, BlockStatusScope scope,
                             AioStatusCallback callback);

  // Holds back the starts of what is submitted until the matching unplug (but
  // not of requests that run where they stand, which need no worker), so
  // that a burst costs one wake-up.  Nests.  A drain starts what is held back.
  void plug();
  void unplug();

  // Runs queued completions (see CompletionQueue::reap) of the device's own
  // queue and returns how many there were; plain completions are dropped into
  // `out`.  Only needed where completions are queued.
  size_t reap(absl::Span<Completion> out = {});

  // ---- Life cycle ----------------------------------------------------------

  // Waits until nothing that was submitted before the call is in flight.  New
  // requests may be submitted meanwhile and are not waited for.
  // Errors: kFailedPrecondition inside a callback of this device.
  absl::Status drain();

  // Refuses new requests, drains, flushes, closes the driver; returns the first
  // error.  Idempotent: later calls return the same.
  // Errors: kFailedPrecondition inside a callback of this device.
  absl::Status close();

  // Drains, then changes what can be changed on an open device, its cache mode
  // included (which then decides about `direct` and `no_flush`).  Requests that
  // are submitted meanwhile wait.
  // Errors: kFailedPrecondition inside a callback of this device.
  absl::Status reopen(const ReopenOptions& options,
                      std::optional<CacheMode> cache_mode = std::nullopt);

  // Drains, and changes what the image is (BlockDriver::amend()); requests that
  // are submitted meanwhile wait.
  // Errors: kFailedPrecondition inside a callback of this device.
  absl::Status amend(const AmendOptions& options);

  // Drains, makes the disk what it was (BlockDriver::apply_snapshot()), and
  // tells the listeners if that had another length; requests that are submitted
  // meanwhile wait, and find the disk as it was.
  // Errors: kFailedPrecondition inside a callback of this device.
  absl::Status apply_snapshot(absl::string_view snapshot);

  // Drains, makes the image longer or shorter, and tells the listeners.  What
  // was submitted before still has the old length; what is submitted meanwhile
  // waits, and has the new one.
  // Errors: kFailedPrecondition inside a callback of this device, those of
  // BlockDriver::resize().
  absl::Status set_length(uint64_t length_bytes,
                          Preallocation preallocation = Preallocation::kOff);
  // Called after the length changed, on the thread that changed it, under no
  // lock.
  void on_length_change(std::function<void(uint64_t length_bytes)> listener);

  DeviceCounters counters() const;

  // Set while the embedder's requests may be added to; see BlockDeviceOptions.
  void set_detect_zeroes(DetectZeroes mode);
  void set_max_in_flight(size_t limit);

 private:
  class Core;
  explicit BlockDevice(std::unique_ptr<Core> core);

  const std::unique_ptr<Core> core_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_BLOCK_DEVICE_H_

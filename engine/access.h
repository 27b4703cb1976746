// Why a format touches its own file: the one tag on which tracing, counters
// and error injection hang.
//
// Thread safety: values, and an interface whose implementations are
// thread-safe.
#ifndef SPINDLE_ENGINE_ACCESS_H_
#define SPINDLE_ENGINE_ACCESS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/sector.h"

namespace spindle {

// The names are those that users of QEMU's blkdebug know.
enum class Purpose : uint8_t {
  kReadAio,         // guest data, read
  kWriteAio,        // guest data, overwritten in place
  kClusterAlloc,    // guest data and padding into clusters just allocated
  kCowRead,         // copy-on-write: what surrounds the guest's data
  kCowWrite,        // copy-on-write padding written by itself
  kCorWrite,        // copy-on-read: what was read is written into the image
  kReadBackingAio,  // guest data, read from the backing file
  kReadCompressed,
  kWriteCompressed,
  kL1Load,
  kL1Update,
  kL2Load,
  kL2Update,
  kL2AllocCowRead,  // an L2 table that a snapshot shares is read, ...
  kL2AllocWrite,    // a new L2 table is zeroed, or becomes its copy
  kSnapshotUpdate,  // a snapshot's L1 table, or the snapshot table, is written
  kBitmapLoad,      // the bitmap directory, a bitmap's table or bits
  kBitmapUpdate,
  kReftableLoad,
  kReftableGrow,
  kReftableUpdate,
  kRefblockLoad,
  kRefblockUpdate,
  kRefblockAlloc,        // a new refcount block is zeroed or written whole
  kRefblockAllocHookup,  // ... and entered into the refcount table
  kHeaderLoad,
  kHeaderUpdate,
  kClusterFree,  // a freed cluster's hole is punched
  kPwritevZero,  // zeroes on behalf of the guest
  // What an unaligned write does not cover at its ends is read (where units are
  // longer than a sector).
  kPwritevRmwHead,
  kPwritevRmwAfterHead,
  kPwritevRmwTail,
  kPwritevRmwAfterTail,
  kFlushToDisk,
  kSetLength,
  kProbe,
  kBlockStatus,
};

inline constexpr int kPurposeCount =
    static_cast<int>(Purpose::kBlockStatus) + 1;

// "l2_update" and so on.
absl::string_view purpose_name(Purpose purpose);

enum class AccessKind : uint8_t {
  kRead,
  kWrite,
  kFlush,
  kDiscard,
  kWriteZeroes,
  kSetLength
};

// One access of a format to its own file, before it happens.
struct Access {
  Purpose purpose;
  AccessKind kind;
  ByteRange range;  // empty for a flush
};

// Implemented by drivers that watch the accesses of the format above them
// (error injection, tests that stop at a chosen point).  A ByteChannel asks
// its driver for one when it is made.
class AccessObserver {
 public:
  virtual ~AccessObserver() = default;

  // Called on the accessing thread before the access; may block.  An error is
  // returned to the format in place of the access.
  virtual absl::Status before_access(const Access& access) = 0;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_ACCESS_H_

// BlockDriver: the driver contract.
//
// A driver offers reads and writes that are vectored, synchronous and
// thread-safe, and knows nothing about asynchronous I/O: everything
// asynchronous lives once, in the generic layer.  This is the whole contract;
// docs on each method say what it does, its units, its errors.
//
// Threads: any thread may call any method at any time, without locks of its
// own.  A call may block.  It never calls back into the generic layer.
//
// Transfers: a call transfers everything or returns an error.  Short transfers
// and EINTR are continued inside; requests are split inside at IOV_MAX and at
// what the kernel takes in one call.  While requests overlap, each byte is that
// of one of them, or old.  A request that starts after another completed sees
// its effect.  Nothing is durable, and nothing is ordered, before flush().
//
// Where request_alignment_bytes is more than 512, "sector" in what follows
// means one such piece: the last sector is the one that the end of the image
// falls into, at that alignment.
//
// Callers (the generic layer and ByteChannel) check range, alignment,
// read-only and capability first; drivers assert those preconditions.  What
// REQUIRES says is such a precondition.
//
// Errors: absl::Status.  A failed system call keeps its errno (errors.h).
#ifndef SPINDLE_ENGINE_BLOCK_DRIVER_H_
#define SPINDLE_ENGINE_BLOCK_DRIVER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/access.h"
#include "engine/amend.h"
#include "engine/dirty_bitmap.h"
#include "engine/image_check.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "engine/snapshot.h"

namespace spindle {

// What a driver asks of its callers, and what it does best.  All in bytes.
struct DriverLimits {
  // Offsets and lengths of transfers are multiples of this: 512, or what
  // O_DIRECT asks for.  A power of two, at least 512.
  uint32_t request_alignment_bytes = kSectorSizeBytes;
  // Addresses and lengths of memory segments are multiples of this.
  uint32_t memory_alignment_bytes = 1;
  // Transfers of this size, at multiples of it, cost the driver least (a
  // qcow2's cluster); 0: no preference.
  uint32_t optimal_transfer_bytes = 0;
  // The longest transfer that the driver takes in one call; 0: any.
  uint64_t max_transfer_bytes = 0;
  // The most segments in one call; 0: any.
  uint32_t max_segments = 0;
  // Discards and write-zeroes have an effect, or are fast, only for multiples
  // of this (a qcow2's cluster).  A power of two, at least 512.
  uint32_t discard_alignment_bytes = kSectorSizeBytes;
  uint32_t write_zeroes_alignment_bytes = kSectorSizeBytes;
  // Calls of write() take turns below for nearly all of their time, as buffered
  // writes to one file do in the kernel: more than one at a time gains nothing
  // while none of them blocks.
  bool writes_take_turns = false;
};

// The optional operations, announced.  A driver that does not announce one
// returns kUnimplemented from it, and the generic layer emulates what can be
// emulated (write zeroes by writing, discard by doing nothing, block status by
// saying "data").
enum class Capability : uint32_t {
  kDiscard = 1 << 0,
  kWriteZeroes = 1 << 1,
  kWriteZeroesMayUnmap = 1 << 2,
  kWriteZeroesNoFallback = 1 << 3,
  kBlockStatus = 1 << 4,
  kSetLength = 1 << 5,
  // Writes beyond the end make the image longer (a format's own file).
  kGrows = 1 << 6,
  kWriteCompressed = 1 << 7,
  kReopen = 1 << 8,
  kInactivate = 1 << 9,
  // try_read() / try_write() can do something.
  kTryRead = 1 << 10,
  kTryWrite = 1 << 11,
  kCheck = 1 << 12,
  kSnapshots = 1 << 13,
  kBitmaps = 1 << 14,
  kVmState = 1 << 15,
  kAmend = 1 << 16,
  kChangeBacking = 1 << 17,
  kMakeEmpty = 1 << 18,
};

class Capabilities {
 public:
  constexpr Capabilities() = default;
  constexpr Capabilities(std::initializer_list<Capability> list) {
    for (Capability c : list) bits_ |= static_cast<uint32_t>(c);
  }
  constexpr bool has(Capability c) const {
    return (bits_ & static_cast<uint32_t>(c)) != 0;
  }
  constexpr void add(Capability c) { bits_ |= static_cast<uint32_t>(c); }
  constexpr void remove(Capability c) { bits_ &= ~static_cast<uint32_t>(c); }

 private:
  uint32_t bits_ = 0;
};

struct WriteZeroesFlags {
  // The range may become unallocated, as long as it reads as zeroes.
  bool may_unmap = false;
  // Fail with kUnimplemented rather than write zeroes one by one.
  bool no_fallback = false;
};

// What is known about the bytes at the start of a range.
struct BlockStatus {
  // How many bytes, from the start of the range asked for, this is true of.
  // At least 1 and at most the length asked for.
  uint64_t length = 0;
  // The layer asked has content of its own here (else the backing file's shows
  // through, or zeroes where there is none).
  bool allocated = false;
  // Reading gives data that is stored somewhere (not a hole).
  bool data = false;
  // Reads as zeroes.
  bool zero = false;
  // Stored compressed.
  bool compressed = false;
  // Where the first byte lives in the file of the layer that has it, if it
  // lives at one place, as it is.
  std::optional<uint64_t> host_offset;
  // How many layers down the data was found: 0 is the image itself.
  int depth = 0;
  // The range ends at the end of the image.
  bool end_of_image = false;
};

enum class BlockStatusScope {
  kThisLayer,   // do not look into the backing file
  kWholeChain,  // what a guest would see
};

enum class SetLengthMode {
  kExact,     // shrink or grow to exactly the length given
  kGrowOnly,  // grow to at least the length given; never shrinks, not even
              // against a write that makes the file longer meanwhile
};

// What is done in advance for the part that an image gains.
enum class Preallocation {
  kOff,
  kMetadata,  // the format maps it; its data are a hole
  kFalloc,    // ... and their space is reserved
  kFull,      // ... and written with zeroes
};

// What must be asked for anew when a driver is reopened, and what may change;
// what is absent stays as it is.
struct ReopenOptions {
  bool read_only = false;
  // As in OpenOptions.  REQUIRES: no request is in flight if `direct` changes.
  std::optional<bool> direct = std::nullopt;
  std::optional<bool> no_flush = std::nullopt;
  // The driver's own; those of the driver below begin with its name ("file.").
  std::map<std::string, std::string> driver_options = {};

  // Takes out what is for the driver below, under whichever of `names`.
  ReopenOptions take_below(absl::Span<const absl::string_view> names);
  // Of a driver that can change none of its own.
  // Errors: kInvalidArgument names the first one that is left.
  absl::Status refuse_options() const;
};

// Which file a driver stores to: two drivers with the same identity would
// overwrite each other.
struct StorageIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  bool operator==(const StorageIdentity&) const = default;
};

// What `info` prints about an image, from its own metadata.
struct ImageInfo {
  std::string format;
  std::string filename;
  uint64_t virtual_size_bytes = 0;
  // What the file occupies on its file system, if known.
  std::optional<uint64_t> actual_size_bytes;
  std::optional<uint64_t> cluster_size_bytes;
  bool encrypted = false;
  bool dirty = false;
  bool corrupt = false;
  std::string backing_filename;  // as it stands in the image; empty: none
  std::string backing_format;    // empty: not stated
  // Further facts in the order in which a person wants to read them, with the
  // names and spellings that QEMU's "Format specific information" uses.
  std::vector<std::pair<std::string, std::string>> format_specific;
};

class BlockDriver {
 public:
  BlockDriver() = default;
  BlockDriver(const BlockDriver&) = delete;
  BlockDriver& operator=(const BlockDriver&) = delete;
  // REQUIRES: no call is in progress.  Does not flush: close() does.
  virtual ~BlockDriver() = default;

  // ---- The data path -------------------------------------------------------

  // Fills `qiov` from the sectors that begin at `sector`.  In the last,
  // partial sector the bytes beyond the end of the image read as zeroes.  Where
  // segments of `qiov` overlap, nobody knows what they hold afterwards.
  // REQUIRES: qiov.length_bytes() and the offset are multiples of
  // request_alignment_bytes, and the range ends within the last sector.
  virtual absl::Status read(const IoVector& qiov, Sector sector) = 0;

  // Writes `qiov` to the sectors that begin at `sector`.  A write that ends
  // within the image's last, partial sector stops at the end of the image.
  // Where kGrows is announced, a write that ends beyond the last sector makes
  // the image as long as the write's end (ByteChannel relies on it).
  // REQUIRES: as for read(), except for the end if kGrows; !read_only().
  // Errors: kResourceExhausted with ENOSPC, ...
  virtual absl::Status write(const IoVector& qiov, Sector sector) = 0;

  // Makes every write that completed before this call durable, metadata
  // included.  Once the kernel has reported a failed flush, every later flush
  // of that file fails until it is reopened.
  virtual absl::Status flush() = 0;

  // Reads from the front of `qiov` as much as can be read without blocking
  // (the page cache has it, or nothing blocks here) and returns how many bytes
  // that were: a multiple of request_alignment_bytes, 0 for none.  Never
  // reports an error: what it could not do, read() does, and that call finds
  // the error again.  "Would block" is not a Status because building one
  // allocates.
  // REQUIRES: as for read().
  virtual uint64_t try_read(const IoVector& qiov, Sector sector);
  virtual uint64_t try_write(const IoVector& qiov, Sector sector);

  // ---- What it is ----------------------------------------------------------

  // "qcow2", "raw", ...
  virtual absl::string_view format_name() const = 0;
  // The file name that it was opened by, for messages; empty if none.
  virtual std::string filename() const { return {}; }
  // The length that a guest sees, in bytes.
  virtual uint64_t length_bytes() const = 0;
  virtual bool read_only() const = 0;
  virtual DriverLimits limits() const { return {}; }
  virtual Capabilities capabilities() const { return {}; }
  virtual ImageInfo info() const;
  // The file it stores to, if it stores to one itself or through its child.
  virtual std::optional<StorageIdentity> identity() const {
    return std::nullopt;
  }
  // The driver of its own file, or the one that it filters: its own, and there
  // as long as it is itself.  Null if there is none.
  virtual BlockDriver* below() const { return nullptr; }
  // The driver whose content shows through where this one has none.
  virtual std::shared_ptr<BlockDriver> backing() const { return nullptr; }
  // The file that its guest data live in, and that the host offsets of
  // block_status() are in, if that is another one than its own.
  virtual std::shared_ptr<BlockDriver> data_file() const { return nullptr; }
  // See access.h.
  virtual AccessObserver* access_observer() { return nullptr; }

  // ---- Optional operations, each announced by capabilities() ---------------

  // The guest no longer needs `range`; afterwards it reads as old data, as
  // zeroes, or as the format defines.  Parts that are not aligned to
  // discard_alignment_bytes may be left alone.
  virtual absl::Status discard(ByteRange range);

  // Makes `range` read as zeroes.
  // REQUIRES: range is aligned to request_alignment_bytes (its end may be the
  // end of the image).
  // Errors: kUnimplemented where this range would have to be written (only the
  // parts that were not done; the whole range may safely be written instead).
  virtual absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags);

  // REQUIRES: !range.empty(), range within the image.
  virtual absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                                   BlockStatusScope scope);

  // Writes `qiov` compressed; data that do not become shorter are stored as
  // they are.
  // REQUIRES: as for write(), and the range begins at a multiple of
  // info().cluster_size_bytes and consists of whole clusters (its end may be
  // the end of the image).
  virtual absl::Status write_compressed(const IoVector& qiov, Sector sector);

  // What the image gains reads as zeroes.  Of requests that are in flight,
  // those that find their range cut off fail with kOutOfRange. Errors:
  // kResourceExhausted beyond a limit; after any the length is as it was.
  virtual absl::Status set_length(uint64_t length_bytes, SetLengthMode mode);
  // The same as kExact, with preallocation of what is gained.
  // Errors: also kInvalidArgument for preallocation of a shorter image,
  // kUnimplemented for a mode that the driver does not have.
  virtual absl::Status resize(uint64_t length_bytes,
                              Preallocation preallocation);

  // Looks for damage, and repairs what the options ask for.  Nothing may be
  // written through this driver meanwhile; reads may.  A repair stops requests
  // as long as it takes; a check makes nobody wait for its end: what must have
  // the image to itself (a snapshot, a resize, reopen(), ...) goes ahead, and
  // the check gives up.
  // REQUIRES: !read_only() if anything shall be repaired.
  // Errors: kCancelled; kAborted if somebody had the image to himself
  // meanwhile; others only where nothing could be checked at all.
  virtual absl::StatusOr<CheckResult> check(const CheckOptions& options);

  // Internal snapshots.  Requests may be in flight; each operation stops them
  // for as long as its format's header says.
  virtual absl::StatusOr<std::vector<SnapshotInfo>> list_snapshots();
  // Keeps the disk as it is now.  `wanted.id` and `wanted.disk_size_bytes` are
  // ignored; returns what was made.
  // Errors: kResourceExhausted if there are too many.
  virtual absl::StatusOr<SnapshotInfo> create_snapshot(
      const SnapshotInfo& wanted);
  // Makes the disk what it was.  `snapshot` is an id, or else a name: the
  // oldest that matches.
  // Errors: kNotFound, kFailedPrecondition if its length is another and the
  // image's cannot be changed.
  virtual absl::Status apply_snapshot(absl::string_view snapshot);
  virtual absl::Status delete_snapshot(absl::string_view snapshot);

  // The state of a virtual machine, beside the disk: by the byte, at most as
  // much as the format can hold.  create_snapshot() makes what its
  // `vm_state_bytes` says a part of the snapshot, and it is gone from here;
  // apply_snapshot() brings it back.
  // Errors: kOutOfRange beyond what the format can hold; reads find zeroes
  // where nothing was written.
  virtual absl::Status read_vmstate(const IoVector& qiov,
                                    uint64_t position_bytes);
  virtual absl::Status write_vmstate(const IoVector& qiov,
                                     uint64_t position_bytes);

  // Changes what the image is: its version, the width of its refcounts, ...
  // Requests may be in flight; they wait while it works.  Its data do not
  // change; on error the image may have some of the changes, complete.
  // Errors: kInvalidArgument for an option that makes no sense or that nothing
  // can change, kUnimplemented for what this image cannot become, kCancelled.
  virtual absl::Status amend(const AmendOptions& options);

  // Makes the image name another backing file (an empty name: none) of the
  // format `format` (empty: not stated).  Nothing is opened: until the image is
  // opened anew it reads through the file that it was opened over.
  // Errors: kInvalidArgument for a name that is too long, kResourceExhausted
  // if the header has no room for it; nothing has changed then.
  virtual absl::Status change_backing_file(absl::string_view filename,
                                           absl::string_view format);

  // Gives up all that the image has itself: the backing file shows through.
  virtual absl::Status make_empty();

  // Dirty bitmaps that the image keeps while it is closed.  Every change of the
  // disk through this driver is recorded in those that are enabled.  Changes of
  // the bitmaps themselves become durable when the image is closed, inactivated
  // or reopened read-only, removals at once.  Requests may be in flight; what
  // changes bitmaps stops them for a moment.
  // Errors of what names one: kNotFound, kFailedPrecondition if it is
  // inconsistent.
  virtual absl::StatusOr<std::vector<DirtyBitmapInfo>> list_bitmaps();
  // The bits themselves, which go on following writes; of an image that is not
  // open for writing, a copy.  Not to be read while another call changes or
  // removes this bitmap or the length of the disk.
  virtual absl::StatusOr<std::shared_ptr<const DirtyBitmap>> find_bitmap(
      absl::string_view name);
  // Errors: kAlreadyExists, kInvalidArgument, kResourceExhausted.
  virtual absl::Status add_bitmap(const NewDirtyBitmap& wanted);
  virtual absl::Status remove_bitmap(absl::string_view name);
  virtual absl::Status clear_bitmap(absl::string_view name);
  virtual absl::Status enable_bitmap(absl::string_view name, bool enabled);
  // Adds what is dirty in `source`, which is of this image or another one.
  // Errors: kInvalidArgument if its disk has another length.
  virtual absl::Status merge_bitmap(absl::string_view name,
                                    const DirtyBitmap& source);

  // Changes options of an open image; on error it stays as it was.  Requests
  // may be in flight.
  virtual absl::Status reopen(const ReopenOptions& options);

  // For migration.  inactivate(): flush, forget what is cached, give up file
  // locks; afterwards only activate() and close() are allowed.  activate():
  // take the locks again and read the metadata anew.
  virtual absl::Status inactivate();
  virtual absl::Status activate();

  // Flushes, writes what must be written for a clean image, and returns the
  // first error.  Called once, when no other call is in progress; afterwards
  // only the destructor is allowed.
  virtual absl::Status close() {
    return read_only() ? absl::OkStatus() : flush();
  }
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_BLOCK_DRIVER_H_

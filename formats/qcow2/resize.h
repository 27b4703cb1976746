// Resizer: a longer or a shorter disk.
//
// Growth.  The L1 table grows first (image_size.h).  Then everything between
// the old end and the new one is made to read as zeroes while nobody sees it:
// tables forget what they may still name there (vmstate, or what a crash left),
// space is preallocated if that is asked for, clusters that a longer backing
// file would show through are marked as zero, and the rest of the old last
// cluster is zeroed if it is not zero (an earlier shrink leaves bytes there).
// All that is durable before the header has the new size.
//
// Shrinking.  The header gets the new size, durably; from then on the disk is
// shorter, whatever happens.  Then what lies behind the end is given up as QEMU
// does: entries of the last L2 table, whole L2 tables with their L1 entries
// (the L1 table keeps its length), refcount blocks that count nothing any more,
// and the end of the file.  What cannot be given up is reported to the log, and
// stays counted; a later growth forgets it.
//
// An external data file follows: zeroes up to the new end before the header has
// it, and nothing behind the end afterwards.  A raw one is mapped wholly, as in
// QEMU; where QEMU rounds its length up to clusters, it has the disk's here.
//
// A crash, or an error, at any point leaves the old size or the new one, and
// leaked clusters at worst.
//
// resize() stops all requests of the image: for a few writes and syncs; for a
// walk over the L2 tables that are dropped, and over all refcounts, when it
// shrinks; for writing the L2 tables of the new part if they must say "zero" or
// are preallocated, and the data of Preallocation::kFull.
//
// Thread safety: one thread at a time, while the image's gate is closed.
#ifndef SPINDLE_FORMATS_QCOW2_RESIZE_H_
#define SPINDLE_FORMATS_QCOW2_RESIZE_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "formats/qcow2/data_reader.h"
#include "formats/qcow2/data_writer.h"
#include "formats/qcow2/image.h"
#include "formats/qcow2/mapping_changer.h"
#include "formats/qcow2/table_references.h"

namespace spindle::qcow2 {

class Resizer {
 public:
  struct Parts {
    Image* image;
    DataReader* reader;
    DataWriter* writer;
    MappingChanger* changer;
    TableReferences* references;
  };

  // All must outlive this.
  Resizer(Parts parts, LogSink log) : parts_(parts), log_(std::move(log)) {}

  // Makes the disk `size_bytes` long.  `snapshot_count`: of the image; version
  // 2 does not say how long their disks are, so there must be none. Errors:
  // kInvalidArgument for a size that is not a multiple of 512, or preallocation
  // of a shorter disk, kFailedPrecondition for snapshots in the way,
  // kResourceExhausted beyond a limit, kUnimplemented where version 2 would
  // need zero clusters to hide its backing file; those of the file.
  absl::Status resize(uint64_t size_bytes, Preallocation preallocation,
                      size_t snapshot_count);

 private:
  absl::Status check(uint64_t size_bytes, Preallocation preallocation,
                     size_t snapshot_count) const;
  absl::Status grow(uint64_t size_bytes, Preallocation preallocation);
  absl::Status fill_new_part(uint64_t size_bytes, Preallocation preallocation);
  absl::Status shrink(uint64_t size_bytes);
  absl::Status give_up_cropped(uint64_t old_size);

  // The backing file is longer than the disk.
  bool backing_is_longer() const;
  // Of an external data file; 0 without one.
  uint64_t data_file_bytes() const;
  // An external data file that is longer ends there, if it can.
  absl::Status cut_data_file(uint64_t length_bytes);
  void log_if_kept(const absl::Status& given_up) const;
  // Zeroes the bytes from the end of the disk to the end of its last cluster.
  absl::Status zero_tail();
  // Makes the tables name nothing behind the last cluster of the disk.
  absl::Status forget_behind_end();
  // True if no entry of `clusters`, all under one L1 entry, would change if it
  // were forgotten: then a table that a snapshot shares need not be copied.
  absl::StatusOr<bool> is_unmapped(ByteRange clusters);
  // The clusters between the end of the disk and where the next L1 entry
  // begins.
  ByteRange rest_of_last_table() const;

  const Parts parts_;
  const LogSink log_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_RESIZE_H_

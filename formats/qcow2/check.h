// Check and repair of an image, from its file.
//
// Nothing is taken from the caches of an open image: they must have been
// written back, and be read anew after a repair.  The file is read in pieces of
// tables; memory is the refcount width per cluster of the file's real length,
// and less than 64 MiB.
//
// Findings and counts are those of `qemu-img check`.  Repairs, in this order,
// each durable before the next: snapshots beyond the limits go; unaligned zero
// clusters lose their place; refcounts are put right, or written anew behind
// the end of the file; COPIED flags; the snapshot table, written anew; the
// dirty and corrupt bits.  After a power cut the image is damaged no more than
// before.
//
// Of an open image, a check lets requests go on, and is inside the gate for one
// batch of pieces at a time: whoever wants to close it waits for that batch,
// four megabytes of tables at most, and nobody waits for the check's end.  It
// then finds that the image may be another one, and gives up.  A repair stops
// all requests for all of it, since it changes what they have in their caches:
// for reading every table, and writing what is wrong.
#ifndef SPINDLE_FORMATS_QCOW2_CHECK_H_
#define SPINDLE_FORMATS_QCOW2_CHECK_H_

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "engine/image_check.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

// Called between two pieces of a check, by the thread that runs it, while
// nothing of it is under way; an error ends it.  May be empty.
using CheckPause = std::function<absl::Status()>;

// `file` is open for writing if anything shall be repaired.  One thread per
// image; pieces of tables and of refcount blocks are checked in parallel on
// options.executor.
// Errors: as BlockDriver::check(); those of SnapshotTableRepair::read() and of
// `pause`, kDataLoss if the bitmap directory cannot be read, or if only
// fix_leaks was asked for and the refcounts must be rebuilt.
absl::StatusOr<CheckResult> check_image(ByteChannel* file, const Header& header,
                                        const CheckOptions& options,
                                        const CheckPause& pause = nullptr);

// The header, as far as a check needs it right.
// Errors: those of parse_header() with TableChecks::kForCheck, of
// check_known() and of BitmapDirectoryReader.
absl::StatusOr<Header> read_header_for_check(ByteChannel* file);

// Both.
absl::StatusOr<CheckResult> check_file(ByteChannel* file,
                                       const CheckOptions& options,
                                       const CheckPause& pause = nullptr);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_CHECK_H_

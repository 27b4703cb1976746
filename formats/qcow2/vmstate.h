// VmState: the vmstate area, which holds a virtual machine's memory and devices
// until a snapshot takes it over.
//
// qcow2 specification, "Snapshots": the area lies behind the disk, where the
// first L1 entry begins that the disk needs no part of, and no guest reaches
// it.  The L1 table grows for it, by half at least, so that growth stays rare.
// A resize forgets it.
//
// Thread safety: read() and write() inside the image's gate; make_room() while
// it is closed: for a few writes and syncs.
#ifndef SPINDLE_FORMATS_QCOW2_VMSTATE_H_
#define SPINDLE_FORMATS_QCOW2_VMSTATE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/io_vector.h"
#include "engine/range_tracker.h"
#include "engine/sector.h"
#include "formats/qcow2/data_reader.h"
#include "formats/qcow2/data_writer.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

class VmState {
 public:
  // All must outlive this.
  VmState(Image* image, DataReader* reader, DataWriter* writer)
      : image_(*image), reader_(*reader), writer_(*writer) {}

  // Fills `qiov` from `position` on; what was never written reads as zeroes.
  // Errors: kOutOfRange beyond what an L1 table can hold, those of the file.
  absl::Status read(const IoVector& qiov, uint64_t position);

  // True if the L1 table reaches as far as `area`.
  absl::StatusOr<bool> has_room(ByteRange area) const;
  // Makes it so.  Errors: as grow_l1(), kOutOfRange.
  absl::Status make_room(ByteRange area);
  // REQUIRES: has_room(), and the image is prepared for writing.
  absl::Status write(const IoVector& qiov, uint64_t position);

 private:
  // Where `area` of the vmstate lies behind the disk.
  absl::StatusOr<ByteRange> place_of(ByteRange area) const;
  uint64_t l1_end() const;
  // What is moved for the sake of `stored`: of an encrypted image, whole
  // sectors.
  ByteRange moved_for(ByteRange stored) const;
  absl::Status read_stored(const IoVector& qiov, ByteRange stored);

  Image& image_;
  DataReader& reader_;
  DataWriter& writer_;
  // Of an encrypted image: sectors that are written in part are read first,
  // while nobody else writes them.
  RangeTracker sectors_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_VMSTATE_H_

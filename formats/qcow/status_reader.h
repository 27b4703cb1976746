// StatusReader: what is known of a range of guest bytes, without reading them.
//
// Runs go on across slices, and the backing file answers for what is not
// allocated.
//
// Thread safety: every method, from any thread, inside the gate.  Does I/O.
#ifndef SPINDLE_FORMATS_QCOW_STATUS_READER_H_
#define SPINDLE_FORMATS_QCOW_STATUS_READER_H_

#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/sector.h"
#include "formats/qcow/image.h"

namespace spindle::qcow {

class StatusReader {
 public:
  // `image` must outlive this.
  explicit StatusReader(Image* image) : image_(*image) {}

  // As BlockDriver::block_status().
  absl::StatusOr<BlockStatus> status(ByteRange range, BlockStatusScope scope);

 private:
  // Of the image's own first bytes from `offset` on.
  absl::StatusOr<BlockStatus> look(uint64_t offset, uint64_t max_bytes);
  BlockStatus status_of(const MappedRun& run) const;

  Image& image_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_STATUS_READER_H_

// StatusReader: what is known of a range of guest bytes, without reading them.
//
// Runs go on across slices, and the backing file answers for what is not
// allocated.  Where the file has far fewer bytes on its file system than its
// refcounts claim (preallocated metadata), holes in it count as zeroes;
// elsewhere the file is not asked.
//
// Thread safety: every method, from any thread, inside the gate.  Does I/O.
#ifndef SPINDLE_FORMATS_QCOW2_STATUS_READER_H_
#define SPINDLE_FORMATS_QCOW2_STATUS_READER_H_

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/sector.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

class StatusReader {
 public:
  // `image` must outlive this.
  explicit StatusReader(Image* image) : image_(*image) {}

  // As BlockDriver::block_status().
  absl::StatusOr<BlockStatus> status(ByteRange range, BlockStatusScope scope);

 private:
  enum class Preallocated { kUnknown, kNo, kYes };

  // Of the image's own first bytes from `offset` on.
  absl::StatusOr<BlockStatus> look(uint64_t offset, uint64_t max_bytes);
  absl::Status look_for_hole(BlockStatus* status);
  absl::StatusOr<bool> has_preallocated_metadata();
  struct TablePlace {
    uint64_t offset = 0;
    uint64_t entry_count = 0;
  };
  absl::StatusOr<TablePlace> refcount_table();
  absl::StatusOr<uint64_t> count_used_clusters(uint64_t at_most);

  Image& image_;
  std::atomic<Preallocated> preallocated_{Preallocated::kUnknown};
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_STATUS_READER_H_

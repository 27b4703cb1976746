// DataReader: guest reads.  Map and pin, transfer without a lock, unpin.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_DATA_READER_H_
#define SPINDLE_FORMATS_QCOW2_DATA_READER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/io_vector.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

class DataReader {
 public:
  // `image` must outlive this.
  explicit DataReader(Image* image) : image_(*image) {}

  // Fills `qiov` from `guest` on.  REQUIRES: the range lies within the image's
  // size.
  absl::Status read(GuestOffset guest, const IoVector& qiov);

  // As BlockDriver::try_read.
  uint64_t try_read(GuestOffset guest, const IoVector& qiov);

  // What `qiov` would read where the image itself has nothing: the backing
  // file, or zeroes.
  absl::Status read_backing(Purpose purpose, GuestOffset guest,
                            const IoVector& qiov);

  // The inflated content of a compressed cluster.  REQUIRES: its host clusters
  // are pinned, or its entry cannot change.
  absl::StatusOr<InflatedCopies::Copy> inflate(L2Entry entry);

 private:
  absl::Status read_run(const MappedRun& run, GuestOffset guest,
                        const IoVector& qiov);
  uint64_t try_read_run(const MappedRun& run, GuestOffset guest,
                        const IoVector& qiov);

  Image& image_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_DATA_READER_H_

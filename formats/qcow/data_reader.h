// DataReader: guest reads.  Map, then transfer without a lock.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW_DATA_READER_H_
#define SPINDLE_FORMATS_QCOW_DATA_READER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/access.h"
#include "engine/io_vector.h"
#include "formats/cluster/inflated_copies.h"
#include "formats/qcow/address.h"
#include "formats/qcow/image.h"

namespace spindle::qcow {

class DataReader {
 public:
  // `image` must outlive this.
  explicit DataReader(Image* image) : image_(*image) {}

  // Fills `qiov` from `guest` on.  REQUIRES: the range lies within the disk.
  absl::Status read(GuestOffset guest, const IoVector& qiov);

  // As BlockDriver::try_read.
  uint64_t try_read(GuestOffset guest, const IoVector& qiov);

  // What `qiov` would read in the cluster of `entry`, or the part of it that it
  // covers, for a write that surrounds its data with it.  Behind the end of the
  // disk there are zeroes.
  absl::Status read_around(L2Entry entry, GuestOffset guest,
                           const IoVector& qiov);

 private:
  absl::Status read_run(const MappedRun& run, GuestOffset guest,
                        const IoVector& qiov);
  uint64_t try_read_run(const MappedRun& run, GuestOffset guest,
                        const IoVector& qiov);
  // Where the image itself has nothing.
  absl::Status read_backing(Purpose purpose, GuestOffset guest,
                            const IoVector& qiov);
  absl::Status read_compressed(L2Entry entry, GuestOffset guest,
                               const IoVector& qiov);
  absl::StatusOr<InflatedCopies::Copy> inflate(L2Entry entry);

  Image& image_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_DATA_READER_H_

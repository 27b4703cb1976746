// CowBase: what a guest reads in a cluster that is about to be written, to
// surround the new data with.
//
// Thread safety: every method, from any thread, while nothing else changes the
// entry that is asked for.
#ifndef SPINDLE_FORMATS_QCOW2_COW_BASE_H_
#define SPINDLE_FORMATS_QCOW2_COW_BASE_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/data_reader.h"
#include "formats/qcow2/image.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {

class CowBase {
 public:
  // Both must outlive this.
  CowBase(Image* image, DataReader* reader)
      : image_(*image), reader_(*reader) {}

  // True if it is zeroes without looking.  `guest`: within the one cluster
  // whose entry is `entry`.
  bool is_zero(L2Entry entry, ByteRange guest) const;
  // What it is.
  absl::StatusOr<std::unique_ptr<uint8_t[]>> read(L2Entry entry,
                                                  ByteRange guest);

 private:
  absl::Status read_run(ClusterKind kind, L2Entry entry, GuestOffset guest,
                        const IoVector& qiov);

  Image& image_;
  DataReader& reader_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_COW_BASE_H_

// CompressedWriter: guest writes that are stored compressed.
//
// Each cluster is compressed without any lock, so that writers do it side by
// side; then its bytes go to the end of the file, and the mapping is published
// (rule 2).  What does not become shorter is written as any other data.  So is
// what has been written before: its old place could not be given back, and with
// every such write the file would grow.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW_COMPRESSED_WRITER_H_
#define SPINDLE_FORMATS_QCOW_COMPRESSED_WRITER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io_vector.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow/address.h"
#include "formats/qcow/data_writer.h"
#include "formats/qcow/image.h"

namespace spindle::qcow {

class CompressedWriter {
 public:
  // Both must outlive this.
  CompressedWriter(Image* image, DataWriter* writer)
      : image_(*image), writer_(*writer) {}

  // Writes `qiov` to `guest` on.  REQUIRES: whole clusters, of which the last
  // may end at the end of the disk; the image is prepared for writing, and not
  // encrypted.
  absl::Status write(GuestOffset guest, const IoVector& qiov);

 private:
  // False if the data must be written as they are.
  absl::StatusOr<bool> put(GuestOffset guest,
                           absl::Span<const uint8_t> compressed);
  // The slice of the entry of `guest`; none if that names something already.
  absl::StatusOr<SliceRef> find_free_entry(GuestOffset guest);
  absl::StatusOr<bool> store(absl::Span<const uint8_t> compressed,
                             ByteRange* place);

  Image& image_;
  DataWriter& writer_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_COMPRESSED_WRITER_H_

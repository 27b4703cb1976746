// CompressedWriter: guest writes that are stored compressed.
//
// Each cluster is compressed without any lock, so that writers do it side by
// side; then space is packed behind what was compressed before it, the data
// goes out, and the mapping is published (rule 2).  What does not become
// shorter is written as any other data.  An error before the mapping is
// published leaves the image as it was (rule 3).
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_COMPRESSED_WRITER_H_
#define SPINDLE_FORMATS_QCOW2_COMPRESSED_WRITER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io_vector.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/data_writer.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

class CompressedWriter {
 public:
  // Both must outlive this.
  CompressedWriter(Image* image, DataWriter* writer)
      : image_(*image), writer_(*writer) {}

  // Writes `qiov` to `guest` on.  REQUIRES: whole clusters, of which the last
  // may end at the end of the image; the image is prepared for writing.
  absl::Status write(GuestOffset guest, const IoVector& qiov);

 private:
  // Where compressed data go, and the entry that will name them.
  struct Plan {
    SliceRef slice;
    size_t index = 0;
    Allocator::PackedBytes packed;
    InFlight::Pin pin;
    L2Entry entry;
  };

  // False if the data must be written as they are.
  absl::StatusOr<bool> put(GuestOffset guest,
                           absl::Span<const uint8_t> compressed);
  absl::StatusOr<bool> put_once(GuestOffset guest,
                                absl::Span<const uint8_t> compressed);
  absl::Status inspect(GuestOffset guest, Plan* plan);
  absl::Status check_place(const Plan& plan, uint64_t bytes);

  Image& image_;
  DataWriter& writer_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_COMPRESSED_WRITER_H_

// DataWriter: guest writes.
//
// A write to clusters that have a place of their own goes there, without any
// exclusive lock.  Any other is a first write: clusters are allocated, data and
// padding go out in one vectored transfer, and then the mapping is published
// (rules 2 and 5).  An error before that leaves the image as it was (rule 3).
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW_DATA_WRITER_H_
#define SPINDLE_FORMATS_QCOW_DATA_WRITER_H_

#include <cstdint>
#include <memory>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/cluster/first_writes.h"
#include "formats/cluster/padding.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow/address.h"
#include "formats/qcow/data_reader.h"
#include "formats/qcow/image.h"

namespace spindle::qcow {

class DataWriter {
 public:
  // Both must outlive this.
  DataWriter(Image* image, DataReader* reader)
      : image_(*image), reader_(*reader) {}

  // Writes `qiov` to `guest` on.  REQUIRES: the range lies within the disk; the
  // image is prepared for writing.
  absl::Status write(GuestOffset guest, const IoVector& qiov);

  // Writes in place what can be written without blocking; see
  // BlockDriver::try_write.
  uint64_t try_write(GuestOffset guest, const IoVector& qiov);

 private:
  // A first write as it is carried out.
  struct Plan {
    SliceRef slice;
    // The entries that change, as they are before.
    absl::InlinedVector<L2Entry, 16> old_entries;
    // Those guest clusters, and the part of them that is data.
    ByteRange clusters;
    ByteRange data;
    // Where they go.
    ByteRange host;
    // What is not written there reads as zeroes.
    bool reads_as_zeroes = false;
  };
  absl::Status write_in_place(const MappedRun& run, GuestOffset guest,
                              const IoVector& qiov);
  absl::Status check_place(ByteRange host) const;

  // Writes some bytes from the front; returns how many, 0 if the mapping is to
  // be looked up again.
  absl::StatusOr<uint64_t> write_first(GuestOffset guest, const IoVector& qiov);
  absl::StatusOr<uint64_t> join(FirstWrites::Ticket ticket, ByteRange data,
                                const IoVector& qiov);
  absl::StatusOr<uint64_t> own(FirstWrites::Ticket ticket, ByteRange data,
                               const IoVector& qiov);

  absl::Status inspect(ByteRange data, Plan* plan);
  absl::Status choose_host(Plan* plan);
  bool needs_no_padding(const Plan& plan) const;
  // Whether what surrounds the data is zeroes, without looking.
  bool is_zero_around(L2Entry old, ByteRange guest) const;
  absl::Status transfer(const Plan& plan, const IoVector& qiov);
  absl::Status read_padding(const Plan& plan, Padding* padding);
  absl::Status read_side(const Plan& plan, L2Entry old, ByteRange guest,
                         std::unique_ptr<uint8_t[]>* bytes, uint64_t* count);

  // Enters that the clusters from `first_guest` on are at `host`.
  void publish(Slice* slice, GuestOffset first_guest, ByteRange host);

  Image& image_;
  DataReader& reader_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_DATA_WRITER_H_

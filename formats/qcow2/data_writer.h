// DataWriter: guest writes.
//
// A write to clusters that are the image's own goes to them in place, pinned
// and without any exclusive lock.  Any other is a first write: clusters are
// allocated, data and padding go out in one vectored transfer, and then the
// mapping is published (rules 2 and 5).  An error before that leaves the image
// as it was (rule 3).
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_DATA_WRITER_H_
#define SPINDLE_FORMATS_QCOW2_DATA_WRITER_H_

#include <cstdint>
#include <memory>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/io_vector.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/data_reader.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

class DataWriter {
 public:
  // Both must outlive this.
  DataWriter(Image* image, DataReader* reader)
      : image_(*image), reader_(*reader) {}

  // Writes `qiov` to `guest` on.  REQUIRES: the range lies within the image's
  // size; the image is prepared for writing.
  absl::Status write(GuestOffset guest, const IoVector& qiov);

  // Writes in place what can be written without blocking; see
  // BlockDriver::try_write.
  uint64_t try_write(GuestOffset guest, const IoVector& qiov);

 private:
  // A first write as it is carried out.
  struct Plan {
    SliceRef slice;
    size_t first_index = 0;  // of the slice's entries that change
    // The entries as they are before.
    absl::InlinedVector<L2Entry, 16> old_entries;
    // The guest clusters that change, and the part of them that is data.
    ByteRange clusters;
    ByteRange data;
    HostClusters host;
    // The host clusters are the old entries' own (zero clusters that kept
    // them).
    bool reuses_host = false;
    // The host clusters read as zeroes already.
    bool reads_as_zeroes = false;
    InFlight::Pin pin;
  };
  // Bytes that surround the data in the first and last cluster.
  struct Padding {
    std::unique_ptr<uint8_t[]> head;
    uint64_t head_bytes = 0;
    std::unique_ptr<uint8_t[]> tail;
    uint64_t tail_bytes = 0;
  };

  absl::Status write_in_place(const MappedRun& run, const IoVector& qiov);
  absl::Status check_in_place(const MappedRun& run);

  // Writes some bytes from the front; returns how many, 0 if the mapping is to
  // be looked up again.
  // `next_cluster`: where the request's data so far end in the file, and then
  // those of this piece; 0 if unknown.
  absl::StatusOr<uint64_t> write_first(GuestOffset guest, const IoVector& qiov,
                                       uint64_t* next_cluster);
  absl::StatusOr<uint64_t> join(FirstWrites::Ticket ticket,
                                const IoVector& qiov);
  absl::StatusOr<uint64_t> own(FirstWrites::Ticket ticket, ByteRange data,
                               const IoVector& qiov, uint64_t* next_cluster);

  absl::Status inspect(ByteRange data, Plan* plan);
  void shorten(size_t cluster_count, Plan* plan) const;
  absl::Status choose_host(uint64_t next_cluster, Plan* plan);
  absl::StatusOr<Allocator::Allocation> allocate(uint64_t next_cluster,
                                                 uint64_t cluster_count);
  absl::Status transfer(const Plan& plan, const IoVector& qiov);
  absl::Status read_padding(const Plan& plan, Padding* padding);
  // What the guest reads in `guest`, within one cluster.
  absl::StatusOr<std::unique_ptr<uint8_t[]>> read_base(L2Entry old_entry,
                                                       ByteRange guest);
  // What the guest reads there now is zeroes without looking.
  bool base_is_zero(L2Entry old_entry, uint64_t guest) const;
  bool needs_no_padding(const Plan& plan) const;

  void publish(Slice* slice, size_t first_index, HostClusters host);
  void drop_old_references(const Plan& plan);

  Image& image_;
  DataReader& reader_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_DATA_WRITER_H_

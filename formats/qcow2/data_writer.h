// DataWriter: guest writes.
//
// A write to clusters that are the image's own goes to them in place, pinned
// and without any exclusive lock.  Any other is a first write: clusters are
// allocated, data and padding go out in one vectored transfer, and then the
// mapping is published (rules 2 and 5).  An error before that leaves the image
// as it was (rule 3).
//
// With subclusters ("Extended L2 Entries") that holds for each of them: a first
// write allocates those that it touches, copies what else is allocated if the
// cluster must move, and leaves the rest to the backing file.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_DATA_WRITER_H_
#define SPINDLE_FORMATS_QCOW2_DATA_WRITER_H_

#include <cstdint>
#include <memory>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/io_vector.h"
#include "formats/cluster/padding.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/cow_base.h"
#include "formats/qcow2/data_reader.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

class DataWriter {
 public:
  // Both must outlive this.
  DataWriter(Image* image, DataReader* reader)
      : image_(*image), base_(image, reader) {}

  // Writes `qiov` to `guest` on.  REQUIRES: the range lies within the image's
  // size; the image is prepared for writing.
  absl::Status write(GuestOffset guest, const IoVector& qiov);

  // Writes in place what can be written without blocking; see
  // BlockDriver::try_write.
  uint64_t try_write(GuestOffset guest, const IoVector& qiov);

  // Maps `clusters`, which are not mapped, and reserves their space as `mode`
  // says; they read as zeroes, subclusters only if they shall hide a backing
  // file.  They may lie beyond the end of the disk.
  // REQUIRES: whole clusters; nothing else is under way; an external data file
  // is prepared already.
  absl::Status preallocate(ByteRange clusters, Preallocation mode,
                           bool hide_backing);

 private:
  // A first write as it is carried out.
  struct Plan {
    SliceRef slice;
    // The entries that change, as they are before.
    absl::InlinedVector<L2Entry, 16> old_entries;
    // The guest clusters that change, the part of them that is allocated
    // afterwards (whole subclusters; without these all), and that which is
    // data.
    ByteRange clusters;
    ByteRange written;
    ByteRange data;
    HostClusters host;
    // The host clusters are the old entries' own (zero clusters that kept
    // them, and clusters of which other subclusters are allocated).
    bool reuses_host = false;
    // The host clusters read as zeroes already.
    bool reads_as_zeroes = false;
    InFlight::Pin pin;
  };
  // What one piece of a request tells the next.
  struct Progress {
    explicit Progress(PendingFrees* pending_frees) : pending(pending_frees) {}
    ~Progress() { give_up_dropped(); }
    // True if there was anything.
    bool give_up_dropped() {
      if (dropped.empty()) return false;
      for (const HostClusters& clusters : dropped)
        pending->add_dropped(clusters);
      dropped.clear();
      return true;
    }

    PendingFrees* const pending;
    // Where the data so far end in the file; 0: nowhere that could be
    // continued.
    uint64_t next_cluster = 0;
    // What the mappings no longer name.  It waits for the request's end: QEMU
    // has placed all of a request before it frees anything.
    absl::InlinedVector<HostClusters, 4> dropped;
  };

  absl::Status write_in_place(const MappedRun& run, GuestOffset guest,
                              const IoVector& qiov);

  // Writes some bytes from the front; returns how many, 0 if the mapping is to
  // be looked up again.
  // `in_own_cluster`: the first cluster is the image's own, as it seems.
  absl::StatusOr<uint64_t> write_first(GuestOffset guest, const IoVector& qiov,
                                       bool in_own_cluster, Progress* progress);
  absl::StatusOr<uint64_t> join(FirstWrites::Ticket ticket, ByteRange data,
                                const IoVector& qiov);
  absl::StatusOr<uint64_t> own(FirstWrites::Ticket ticket, ByteRange data,
                               const IoVector& qiov, bool in_own_cluster,
                               Progress* progress);

  absl::Status inspect(ByteRange data, bool in_own_cluster, Plan* plan);
  bool needs_first_write(L2Entry entry) const;
  bool can_reuse_host(L2Entry entry) const;
  void shorten(size_t cluster_count, Plan* plan) const;
  absl::Status choose_host(uint64_t next_cluster, Plan* plan);
  absl::Status transfer(const Plan& plan, const IoVector& qiov);
  absl::Status read_padding(const Plan& plan, Padding* padding);
  bool needs_no_padding(const Plan& plan) const;

  // Enters that the clusters from `first_guest` on are at `host`, and that
  // `written` is allocated there.
  void publish(Slice* slice, GuestOffset first_guest, HostClusters host,
               ByteRange written);
  // ... or that they are there, and read as zeroes.
  void publish_zeroes(Slice* slice, GuestOffset first_guest, HostClusters host);
  // Of an encrypted image: zeroes that are encrypted.
  absl::Status write_zero_clusters(GuestOffset first_guest, HostClusters host);
  uint64_t bitmap_of(L2Entry old, uint64_t cluster_start,
                     ByteRange written) const;
  void drop_old_references(const Plan& plan, Progress* progress);

  Image& image_;
  CowBase base_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_DATA_WRITER_H_

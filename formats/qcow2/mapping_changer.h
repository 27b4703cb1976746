// MappingChanger: discards and zeroes, which change tables and move no data.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_MAPPING_CHANGER_H_
#define SPINDLE_FORMATS_QCOW2_MAPPING_CHANGER_H_

#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/block_driver.h"
#include "engine/sector.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

class MappingChanger {
 public:
  // `image` must outlive this.
  explicit MappingChanger(Image* image) : image_(*image) {}

  // Forgets the whole clusters in `range`; they read as zeroes afterwards.
  // With discard-no-unref they keep their host clusters, unless compressed.
  // Version 2 with a backing file has no way to say so, and forgets nothing.
  absl::Status discard(ByteRange range);

  // Makes `range` read as zeroes by marking whole clusters, or subclusters; one
  // that is not covered wholly is marked if the rest of it reads as zeroes
  // already. Errors: kUnimplemented where bytes would have to be written.
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags);

  // ---- For a resize: whole clusters, also beyond the end of the disk ----

  // Makes `clusters` unallocated.  `create_tables`: QEMU makes an L2 table
  // where there is none, and copies one that is shared, even if nothing
  // changes.
  absl::Status forget(ByteRange clusters, bool create_tables);
  // Marks `clusters` as zero; they keep their host clusters.
  // REQUIRES: version 3, no compressed clusters.
  absl::Status mark_zero(ByteRange clusters);

 private:
  // The entry that replaces `old`, the one of the cluster at `guest`; nothing
  // if the cluster cannot be changed by its entry alone.
  using Replace =
      absl::FunctionRef<std::optional<L2Entry>(GuestOffset guest, L2Entry old)>;

  struct ChangeOptions {
    bool create_tables = false;
    // A host cluster that is kept, and reads as zeroes, needs no space.
    bool gives_up_space = false;
  };

  // Replaces the entries of the clusters that `range`, of whole subclusters,
  // touches, slice by slice.  Others may change other subclusters meanwhile.
  absl::Status change(ByteRange range, ChangeOptions options, Replace replace);
  absl::Status change_in_slice(ByteRange range, ChangeOptions options,
                               Replace replace);
  // The cluster at `guest` has `entry` now, whose host cluster is the one that
  // it had before.
  void note_kept(GuestOffset guest, L2Entry entry, bool gives_up_space);
  // What a cluster becomes.
  L2Entry discarded(L2Entry old) const;
  L2Entry zeroed(L2Entry old, WriteZeroesFlags flags) const;
  // With the host cluster, if it has one.  REQUIRES: version 3, not compressed.
  L2Entry kept_zero(L2Entry old) const;
  // The (sub)cluster at `guest` reads as zeroes if its cluster has the entry
  // `entry`, where
  // `backing_is_zero` says so of what shows through.
  bool reads_as_zeroes(GuestOffset guest, L2Entry entry,
                       bool backing_is_zero) const;
  // The backing file reads as zeroes in `range`, as far as it says so.
  absl::StatusOr<bool> backing_is_zero(ByteRange range);

  Image& image_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_MAPPING_CHANGER_H_

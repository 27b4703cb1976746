#include "formats/qcow2/check.h"

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/errors.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/check_context.h"
#include "formats/qcow2/copied_flags.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/header_file.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_rebuild.h"
#include "formats/qcow2/reference_counter.h"
#include "formats/qcow2/reference_walk.h"
#include "formats/qcow2/snapshot_table_repair.h"
#include "formats/qcow2/stored_refcounts.h"

namespace spindle::qcow2 {
namespace {

// As QEMU: a file with more clusters is not checked.
constexpr uint64_t kMaxClusters = INT32_MAX;

class Check {
 public:
  Check(ByteChannel* file, const Header& header, const CheckOptions& options,
        const CheckPause& pause)
      : context_(file, header, options),
        stored_(&context_),
        snapshot_table_(&context_) {
    context_.pause = pause;
  }

  absl::StatusOr<CheckResult> run();
  // What a new snapshot table has changed: who refers to what.
  absl::Status run_second() {
    is_second_ = true;
    return run().status();
  }

 private:
  using Fix = StoredRefcounts::Fix;
  CheckResult& result() { return context_.result; }
  const CheckOptions& options() const { return context_.options; }

  // Makes room for the file as long as it is now.
  absl::Status make_counter();
  // Counts every reference.
  absl::Status count(bool repairs);
  // Compares, and repairs in place or by rebuilding what options ask for.
  absl::Status settle_refcounts();
  absl::Status rebuild();
  void say_freed(const Header& old);
  absl::Status compare(Fix fix);
  // In free clusters; then gives up the old one.
  absl::Status write_snapshot_table();
  // For what was written behind the end of the file, where the refcount
  // structures have no room for it: new ones.
  absl::Status append_clusters(ByteRange place);
  absl::Status clear_marks();

  // The check after a repair: the snapshot table is as it will be.
  bool is_second_ = false;
  CheckContext context_;
  StoredRefcounts stored_;
  SnapshotTableRepair snapshot_table_;
  std::optional<ReferenceCounter> counter_;
  uint64_t clusters_ = 0;
  // The refcount structures must be rebuilt.
  bool unusable_ = false;
  uint64_t highest_cluster_ = 0;
};

absl::Status Check::make_counter() {
  const uint64_t clusters =
      context_.geometry.clusters_for(context_.file_bytes());
  if (clusters > kMaxClusters) {
    return errno_status(EFBIG,
                        absl::StrCat("the file has ", clusters,
                                     " clusters: the limit is ", kMaxClusters));
  }
  // One more: the last one may end beyond the file.
  absl::StatusOr<ReferenceCounter> counter =
      ReferenceCounter::create(clusters + 1, context_.geometry.refcount_order);
  if (!counter.ok()) return counter.status();
  counter_.emplace(*std::move(counter));
  return absl::OkStatus();
}

absl::Status Check::count(bool repairs) {
  ReferenceWalk walk(&context_, &*counter_);
  if (repairs) walk.set_aside_unaligned_zeroes();
  absl::Status status = walk.count_all(/*with_refcount_table=*/true);
  unusable_ = false;
  if (status.ok()) status = walk.count_refcount_blocks(stored_, &unusable_);
  if (status.ok() && repairs) {
    status = zero_entries(&context_, stored_, walk.take_set_aside(), &walk);
  }
  clusters_ = walk.counted_clusters();
  return status;
}

absl::Status Check::compare(Fix fix) {
  StoredRefcounts::Outcome outcome;
  absl::Status status = stored_.compare(*counter_, clusters_, fix, &outcome);
  unusable_ |= outcome.unusable;
  highest_cluster_ = outcome.highest_cluster;
  return status;
}

absl::Status Check::settle_refcounts() {
  const Fix fix{options().fix_leaks, options().fix_errors};
  // Where references are missing from the count, the refcounts stay.
  const bool complete = result().check_errors == 0;
  const CheckResult before = result();
  absl::Status status = compare(Fix());
  if (!status.ok() || !fix.any() || !complete) return status;
  if (unusable_ && fix.errors) return rebuild();
  if (unusable_) {
    context_.say("ERROR need to rebuild refcount structures");
    return errno_status(EIO,
                        "the refcount structures must be rebuilt, which only "
                        "a repair of errors does");
  }
  if (result().leaks == 0 && result().corruptions == before.corruptions)
    return status;
  result() = before;
  return compare(fix);
}

// The clusters of the structures that `old` names, which nothing else uses:
// they are free now.  As leaks, as QEMU sees them.
void Check::say_freed(const Header& old) {
  std::set<uint64_t> clusters;
  // Whatever the header and the table say: no more than the file has.
  const auto add = [&](uint64_t cluster) {
    if (cluster < clusters_ && counter_->get(cluster) == 0)
      clusters.insert(cluster);
  };
  const uint64_t table = old.refcount_table_offset >> old.cluster_bits;
  for (uint64_t i = 0; i < old.refcount_table_clusters; ++i) add(table + i);
  for (uint64_t i = 0; i < stored_.table_entry_count(); ++i) {
    const uint64_t offset = stored_.block_offset(i);
    if (offset != 0) add(offset >> old.cluster_bits);
  }
  for (const uint64_t cluster : clusters) {
    context_.say(
        absl::StrCat("Repairing cluster ", cluster, " refcount=1 reference=0"));
  }
}

absl::Status Check::rebuild() {
  const CheckResult old = result();
  context_.say("Rebuilding refcount structure");
  {
    // Without what is replaced.  Said already.
    const CheckOptions silent{.executor = options().executor,
                              .cancelled = options().cancelled};
    CheckContext context(context_.file, context_.header, silent);
    counter_->clear();
    ReferenceWalk walk(&context, &*counter_);
    absl::Status status = walk.count_all(/*with_refcount_table=*/false);
    if (status.ok()) {
      status = rebuild_refcounts(&context, *counter_, walk.counted_clusters());
    }
    if (!status.ok()) return status;
    say_freed(context_.header);
    context_.header = context.header;
  }
  counter_.reset();
  absl::Status status = make_counter();
  if (status.ok()) status = stored_.load();
  if (!status.ok()) return status;
  // Everything anew: what is left, and where the clusters are.
  result() = CheckResult();
  status = count(/*repairs=*/false);
  const CheckResult counted = result();
  if (status.ok()) status = compare(Fix());
  if (!status.ok()) return status;
  // In an image whose tables overlap what was written just now may be what an
  // entry says.
  if (result().leaks != 0 || result().corruptions != counted.corruptions) {
    result() = counted;
    status = compare({options().fix_leaks, options().fix_errors});
    if (!status.ok()) return status;
    result().leaks_fixed = result().corruptions_fixed = 0;
  }
  result().corruptions_fixed = old.corruptions_fixed;
  result().leaks_fixed = old.leaks_fixed;
  if (result().corruptions < old.corruptions)
    result().corruptions_fixed += old.corruptions - result().corruptions;
  if (result().leaks < old.leaks)
    result().leaks_fixed += old.leaks - result().leaks;
  return status;
}

absl::Status Check::append_clusters(ByteRange place) {
  const CheckOptions silent{.executor = options().executor,
                            .cancelled = options().cancelled};
  CheckContext context(context_.file, context_.header, silent);
  absl::Status status = make_counter();
  if (!status.ok()) return status;
  ReferenceWalk walk(&context, &*counter_);
  status = walk.count_all(/*with_refcount_table=*/false);
  if (!status.ok()) return status;
  Findings none(/*keep_lines=*/false);
  walk.count(place.offset, place.length, &none);
  status = rebuild_refcounts(&context, *counter_, walk.counted_clusters());
  if (status.ok()) context_.header = context.header;
  return status;
}

absl::Status Check::write_snapshot_table() {
  const Geometry& geometry = context_.geometry;
  const absl::StatusOr<uint64_t> length = snapshot_table_.new_length_bytes();
  if (!length.ok()) return length.status();
  const uint64_t count = geometry.clusters_for(*length);
  const std::optional<uint64_t> free = stored_.find_free(count);
  const uint64_t offset = geometry.cluster_offset(free.value_or(
      std::max(geometry.clusters_for(context_.file_bytes()), clusters_)));
  absl::Status status = snapshot_table_.write_new_table(offset);
  if (status.ok()) {
    status = free.has_value() ? stored_.take(*free, count)
                              : append_clusters({offset, *length});
  }
  if (status.ok()) status = context_.file->flush();
  if (status.ok()) status = snapshot_table_.switch_header(offset);
  if (!status.ok()) return status;
  // The old one's clusters may be something else's, too: counted anew.
  const CheckOptions silent{.fix_leaks = true,
                            .fix_errors = true,
                            .executor = options().executor,
                            .cancelled = options().cancelled};
  return Check(context_.file, context_.header, silent, nullptr).run_second();
}

absl::Status Check::clear_marks() {
  const uint64_t marks = kIncompatibleDirty | kIncompatibleCorrupt;
  uint64_t& features = context_.header.incompatible_features;
  if ((features & marks) == 0) return absl::OkStatus();
  absl::Status status = context_.file->flush();
  if (!status.ok()) return status;
  std::array<uint8_t, 8> bytes{};
  store_big64(bytes.data(), features & ~marks);
  status = context_.file->write(Purpose::kHeaderUpdate, bytes.data(),
                                bytes.size(), kIncompatibleFeaturesOffset);
  if (status.ok()) status = context_.file->flush();
  if (status.ok()) features &= ~marks;
  return status;
}

absl::StatusOr<CheckResult> Check::run() {
  const bool repairs = options().fix_leaks || options().fix_errors;
  context_.expect_steps(2 * uint64_t{context_.header.l1_entry_count});
  absl::Status status = snapshot_table_.read();
  if (!status.ok()) return status;
  context_.expect_steps(snapshot_table_.l1_entry_count());
  status = make_counter();
  // Compared, and kept.
  if (status.ok())
    context_.expect_steps(
        2 * StoredRefcounts::steps_for(counter_->cluster_count()));
  if (status.ok()) status = stored_.load();
  if (status.ok()) status = count(options().fix_errors);
  if (status.ok()) status = settle_refcounts();
  if (status.ok()) status = stored_.keep(&*counter_, clusters_);
  if (status.ok()) {
    // Leaks alone were to be repaired: the flags, too, if the refcounts can be
    // relied on.
    const bool is_clean = result().corruptions == 0 && result().leaks == 0 &&
                          result().check_errors == 0;
    status =
        check_copied_flags(&context_, stored_,
                           options().fix_errors ? result().check_errors == 0
                                                : repairs && is_clean);
  }
  if (!status.ok()) return status;
  const Geometry& geometry = context_.geometry;
  result().image_end_offset = geometry.cluster_offset(highest_cluster_ + 1);
  // QEMU counts in sectors.
  result().total_clusters = geometry.clusters_for(
      align_down(context_.header.size_bytes, kSectorSizeBytes));
  if (options().fix_errors && !is_second_ &&
      snapshot_table_.corruptions() != 0 && result().check_errors == 0) {
    status = write_snapshot_table();
    if (!status.ok()) {
      context_.say(absl::StrCat("ERROR failed to update snapshot table: ",
                                status.message()));
      return status;
    }
  }
  result().corruptions += snapshot_table_.corruptions();
  if (repairs && result().check_errors == 0 && result().corruptions == 0) {
    status = clear_marks();
    if (!status.ok()) return status;
  }
  context_.finish();
  return result();
}

// That every bitmap's entry can be read: an image with another is opened for
// nothing, and a check is no exception.
absl::Status check_bitmap_entries(ByteChannel* file, const Header& header) {
  const absl::StatusOr<BitmapDirectory> directory =
      find_bitmap_directory(header);
  if (!directory.ok()) return directory.status();
  BitmapDirectoryReader reader(file, header, *directory,
                               BitmapDirectoryReader::ExtraData::kSkip);
  while (!reader.at_end()) {
    absl::Status status = reader.next().status();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CheckResult> check_image(ByteChannel* file, const Header& header,
                                        const CheckOptions& options,
                                        const CheckPause& pause) {
  return Check(file, header, options, pause).run();
}

absl::StatusOr<Header> read_header_for_check(ByteChannel* file) {
  absl::StatusOr<Header> header = read_header(file, TableChecks::kForCheck);
  if (!header.ok()) return header;
  absl::Status status = check_known(*header);
  if (status.ok()) status = find_luks_header(*header).status();
  if (status.ok()) status = check_bitmap_entries(file, *header);
  if (!status.ok()) return status;
  return header;
}

absl::StatusOr<CheckResult> check_file(ByteChannel* file,
                                       const CheckOptions& options,
                                       const CheckPause& pause) {
  const absl::StatusOr<Header> header = read_header_for_check(file);
  if (!header.ok()) return header.status();
  return check_image(file, *header, options, pause);
}

}  // namespace spindle::qcow2

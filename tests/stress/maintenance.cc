#include "tests/stress/maintenance.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/dirty_bitmap.h"
#include "engine/image_check.h"
#include "engine/snapshot.h"

namespace spindle::testing {
namespace {

constexpr char kFollower[] = "all changes";
constexpr size_t kMostSnapshots = 4;

absl::Status unless(absl::StatusCode allowed, absl::Status status) {
  return status.code() == allowed ? absl::OkStatus() : status;
}

}  // namespace

std::string Maintenance::Done::to_string() const {
  return absl::StrCat(snapshots, " snapshots, ", applied, " applied, ",
                      bitmap_changes, " changes of bitmaps, ", grown,
                      " times longer, ", shrunk, " times shorter, ", checks,
                      " checks");
}

Maintenance::Maintenance(BlockDevice* device, ModelDisk* model,
                         std::function<absl::StatusOr<Content>()> read_all,
                         MaintenanceOptions options)
    : device_(device),
      model_(model),
      read_all_(std::move(read_all)),
      options_(options),
      random_(options.seed) {}

absl::Status Maintenance::remove_bitmaps() {
  const auto all = device_->driver().list_bitmaps();
  if (!all.ok()) return all.status();
  for (const DirtyBitmapInfo& bitmap : *all) {
    const absl::Status status = device_->driver().remove_bitmap(bitmap.name);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Maintenance::start(Content content) {
  before_ = std::move(content);
  kept_bytes_ = before_.size();
  if (!has(Capability::kBitmaps)) return absl::OkStatus();
  if (!options_.has_bitmaps) return remove_bitmaps();
  BlockDriver& driver = device_->driver();
  // One that an earlier life left goes on; what it knows is no less.
  NewDirtyBitmap wanted;
  wanted.name = kFollower;
  wanted.granularity_bytes = DirtyBitmap::kMinGranularityBytes;
  const absl::Status status = driver.add_bitmap(wanted);
  // Version 2 has none.
  follows_ = !absl::IsFailedPrecondition(status);
  if (!follows_) return absl::OkStatus();
  if (absl::IsAlreadyExists(status)) return driver.clear_bitmap(kFollower);
  return status;
}

// ---- Snapshots --------------------------------------------------------------

absl::Status Maintenance::change_snapshots(Workload* workload) {
  BlockDriver& driver = device_->driver();
  const absl::StatusOr<std::vector<SnapshotInfo>> all = driver.list_snapshots();
  if (!all.ok()) return all.status();
  if (all->size() < kMostSnapshots && (all->empty() || random_() % 2 == 0)) {
    if (follows_ || random_() % 2 == 0) return create_snapshot();
    return workload->alone([this] { return create_known_snapshot(); });
  }
  const std::string id = (*all)[random_() % all->size()].id;
  if (!follows_ && known_.count(id) != 0 && random_() % 2 == 0)
    return apply_snapshot(id);
  known_.erase(id);
  return driver.delete_snapshot(id);
}

absl::Status Maintenance::create_snapshot() {
  SnapshotInfo wanted;
  wanted.name = "stress";
  const absl::Status status =
      device_->driver().create_snapshot(wanted).status();
  if (status.ok()) ++done_.snapshots;
  // Refcounts of one bit count no second reference.
  return unless(absl::StatusCode::kResourceExhausted, status);
}

absl::Status Maintenance::create_known_snapshot() {
  absl::StatusOr<Content> content = read_all_();
  if (!content.ok()) return content.status();
  SnapshotInfo wanted;
  wanted.name = "known";
  const absl::StatusOr<SnapshotInfo> made =
      device_->driver().create_snapshot(wanted);
  if (!made.ok())
    return unless(absl::StatusCode::kResourceExhausted, made.status());
  ++done_.snapshots;
  known_[made->id] = std::make_shared<const Content>(*std::move(content));
  return absl::OkStatus();
}

absl::Status Maintenance::apply_snapshot(const std::string& id) {
  const std::shared_ptr<const Content>& content = known_[id];
  const ModelDisk::ChangeRef change = model_->begin_replacement(content);
  model_->length().begin(content->size());
  const absl::Status status = device_->apply_snapshot(id);
  model_->length().end(status.ok());
  model_->end(change, status.ok() ? ModelDisk::Outcome::kDone
                                  : ModelDisk::Outcome::kFailed);
  if (status.ok()) ++done_.applied;
  return status;
}

// ---- Length -----------------------------------------------------------------

uint64_t Maintenance::choose_length() {
  const uint64_t space = options_.longest_bytes - options_.shortest_bytes;
  uint64_t length = options_.shortest_bytes + random_() % (space + 1);
  // Often a little only, around where requests are.
  if (random_() % 2 == 0) {
    const uint64_t near = model_->length_bytes() + random_() % 65536;
    length = std::clamp(near - std::min<uint64_t>(near, 32768),
                        options_.shortest_bytes, options_.longest_bytes);
  }
  const uint64_t unit =
      random_() % 2 == 0 ? options_.length_unit_bytes : uint64_t{65536};
  return align_down(length, unit);
}

absl::Status Maintenance::change_length() {
  const uint64_t old_length = model_->length_bytes();
  const uint64_t length = choose_length();
  const bool grows = length > old_length;
  Preallocation mode = Preallocation::kOff;
  if (grows && random_() % 4 == 0)
    mode = static_cast<Preallocation>(random_() % 4);
  ModelDisk::ChangeRef gained;
  if (grows)
    gained = model_->begin_write_zeroes({old_length, length - old_length});
  model_->length().begin(length);
  const absl::Status status = device_->set_length(length, mode);
  model_->length().end(status.ok());
  if (grows) {
    model_->end(gained, status.ok() ? ModelDisk::Outcome::kDone
                                    : ModelDisk::Outcome::kWithdrawn);
  }
  if (status.ok() && length != old_length)
    ++(grows ? done_.grown : done_.shrunk);
  if (status.ok()) kept_bytes_ = std::min(kept_bytes_, length);
  // Version 2 does not keep the lengths of snapshots, and cannot hide a longer
  // backing file; raw has no metadata to preallocate.
  return unless(absl::StatusCode::kFailedPrecondition,
                unless(absl::StatusCode::kUnimplemented, status));
}

// ---- Bitmaps ----------------------------------------------------------------

absl::Status Maintenance::change_bitmaps() {
  BlockDriver& driver = device_->driver();
  const std::string name = absl::StrCat("b", random_() % 3);
  ++done_.bitmap_changes;
  switch (random_() % 5) {
    case 0: {
      NewDirtyBitmap wanted;
      wanted.name = name;
      wanted.enabled = random_() % 2 == 0;
      return unless(absl::StatusCode::kAlreadyExists,
                    driver.add_bitmap(wanted));
    }
    case 1:
      return unless(absl::StatusCode::kNotFound, driver.remove_bitmap(name));
    case 2:
      return unless(absl::StatusCode::kNotFound, driver.clear_bitmap(name));
    case 3: {
      const absl::StatusOr<std::shared_ptr<const DirtyBitmap>> source =
          driver.find_bitmap(kFollower);
      if (!source.ok()) return source.status();
      return unless(absl::StatusCode::kNotFound,
                    driver.merge_bitmap(name, **source));
    }
    default:
      return unless(absl::StatusCode::kNotFound,
                    driver.enable_bitmap(name, random_() % 2 == 0));
  }
}

// ---- All --------------------------------------------------------------------

absl::Status Maintenance::step(Workload* workload) {
  const uint64_t dice = random_() % 16;
  if (dice < 6 && options_.shortest_bytes < options_.longest_bytes)
    return change_length();
  if (dice < 7 && has(Capability::kCheck)) {
    // A repair has the image to itself; a mere check must be given it.
    if (options_.has_repair && random_() % 2 == 0)
      return check_soundness(/*repair=*/true);
    return workload->alone([this] { return check_soundness(false); });
  }
  if (dice < 12 && has(Capability::kSnapshots))
    return change_snapshots(workload);
  return follows_ ? change_bitmaps() : absl::OkStatus();
}

absl::Status Maintenance::check_soundness(bool repair) {
  CheckOptions options;
  options.fix_leaks = options.fix_errors = repair;
  std::string report;
  options.report = [&report](absl::string_view line) {
    absl::StrAppend(&report, "\n", line);
  };
  const absl::StatusOr<CheckResult> found = device_->driver().check(options);
  if (!found.ok()) return found.status();
  ++done_.checks;
  const uint64_t corruptions = found->corruptions + found->corruptions_fixed;
  const uint64_t leaks = found->leaks + found->leaks_fixed;
  if (corruptions + leaks + found->check_errors == 0) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("a check found ", corruptions, " corruptions, ", leaks,
                   " leaks and ", found->check_errors, " errors", report));
}

absl::Status Maintenance::judge(const Content& content) {
  if (has(Capability::kCheck)) {
    const absl::Status sound = check_soundness(/*repair=*/false);
    if (!sound.ok()) return sound;
  }
  if (!follows_) return absl::OkStatus();
  const absl::StatusOr<std::shared_ptr<const DirtyBitmap>> follower =
      device_->driver().find_bitmap(kFollower);
  if (!follower.ok()) return follower.status();
  const uint64_t granule = (*follower)->granularity_bytes();
  for (uint64_t at = 0; at < kept_bytes_; at += granule) {
    const uint64_t end = std::min<uint64_t>(at + granule, kept_bytes_);
    const bool changed =
        !std::equal(content.begin() + static_cast<ptrdiff_t>(at),
                    content.begin() + static_cast<ptrdiff_t>(end),
                    before_.begin() + static_cast<ptrdiff_t>(at));
    if (changed && !(*follower)->is_dirty(at)) {
      return absl::DataLossError(
          absl::StrCat("byte ", at, " and on changed, and is not dirty"));
    }
  }
  return absl::OkStatus();
}

}  // namespace spindle::testing

#include "tests/stress/maintenance.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
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

Maintenance::Maintenance(BlockDevice* device, uint64_t seed,
                         std::vector<uint8_t> content)
    : device_(device), random_(seed), before_(std::move(content)) {}

absl::Status Maintenance::start() {
  if (!has(Capability::kBitmaps)) return absl::OkStatus();
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

absl::Status Maintenance::change_snapshots() {
  BlockDriver& driver = device_->driver();
  const absl::StatusOr<std::vector<SnapshotInfo>> all = driver.list_snapshots();
  if (!all.ok()) return all.status();
  if (all->size() < kMostSnapshots && (all->empty() || random_() % 2 == 0)) {
    SnapshotInfo wanted;
    wanted.name = "stress";
    const absl::Status status = driver.create_snapshot(wanted).status();
    if (status.ok()) ++snapshots_;
    // Refcounts of one bit count no second reference.
    return unless(absl::StatusCode::kResourceExhausted, status);
  }
  return driver.delete_snapshot((*all)[random_() % all->size()].id);
}

absl::Status Maintenance::change_bitmaps() {
  BlockDriver& driver = device_->driver();
  const std::string name = absl::StrCat("b", random_() % 3);
  ++bitmap_changes_;
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

absl::Status Maintenance::step() {
  if (has(Capability::kSnapshots) && random_() % 2 == 0)
    return change_snapshots();
  return follows_ ? change_bitmaps() : absl::OkStatus();
}

absl::Status Maintenance::judge(const std::vector<uint8_t>& content) {
  BlockDriver& driver = device_->driver();
  if (has(Capability::kCheck)) {
    const absl::StatusOr<CheckResult> found = driver.check({});
    if (!found.ok()) return found.status();
    if (found->corruptions + found->leaks + found->check_errors != 0) {
      return absl::DataLossError(absl::StrCat(
          "a check found ", found->corruptions, " corruptions, ", found->leaks,
          " leaks and ", found->check_errors, " errors"));
    }
  }
  if (!follows_) return absl::OkStatus();
  const absl::StatusOr<std::shared_ptr<const DirtyBitmap>> follower =
      driver.find_bitmap(kFollower);
  if (!follower.ok()) return follower.status();
  const uint64_t granule = (*follower)->granularity_bytes();
  for (uint64_t at = 0; at < content.size(); at += granule) {
    const uint64_t end = std::min<uint64_t>(at + granule, content.size());
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

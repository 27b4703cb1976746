// Bitmaps: the directory and the bits in the file.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/checked_math.h"
#include "formats/cluster/metadata_extents.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/bitmaps.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

ByteRange extent_of(const HostClusters& run, const Geometry& geometry) {
  return {geometry.cluster_offset(run.first),
          geometry.cluster_offset(run.count)};
}

}  // namespace

// ---- Where they lie ---------------------------------------------------------

absl::Status Bitmaps::enter_place(BitmapPlace* place) {
  for (size_t i = 0; i < place->clusters.size(); ++i) {
    absl::Status status =
        image_.extents().add(MetadataKind::kBitmap,
                             extent_of(place->clusters[i], image_.geometry()));
    if (status.ok()) continue;
    for (size_t j = 0; j < i; ++j) {
      image_.extents().remove(extent_of(place->clusters[j], image_.geometry()));
    }
    return status;
  }
  return absl::OkStatus();
}

void Bitmaps::remove_extents(const BitmapPlace& place) {
  for (const HostClusters& run : place.clusters)
    image_.extents().remove(extent_of(run, image_.geometry()));
}

absl::Status Bitmaps::enter_extents() {
  if (entered_extents_) return absl::OkStatus();
  std::vector<const BitmapPlace*> entered;
  absl::Status status =
      image_.extents().add(MetadataKind::kBitmapDirectory, directory_place_);
  const bool directory_entered = status.ok();
  const auto enter = [&](Bitmap* bitmap) {
    if (!status.ok()) return;
    status = enter_place(&bitmap->place);
    if (status.ok()) entered.push_back(&bitmap->place);
  };
  for (Bitmap& bitmap : bitmaps_) {
    if (bitmap.bits != nullptr) enter(&bitmap);
  }
  for (Bitmap& bitmap : bitmaps_) {
    if (bitmap.bits != nullptr || !status.ok()) continue;
    enter(&bitmap);
    if (status.ok()) continue;
    // It cannot be used, and is not freed where others lie.
    bitmap.place.clusters.clear();
    status = absl::OkStatus();
  }
  entered_extents_ = status.ok();
  if (status.ok()) {
    update_live();
    return status;
  }
  for (const BitmapPlace* place : entered) remove_extents(*place);
  if (directory_entered) image_.extents().remove(directory_place_);
  return status;
}

void Bitmaps::update_live() {
  std::vector<LiveBitmaps::Live> live;
  for (const Bitmap& bitmap : bitmaps_) {
    if (bitmap.bits == nullptr) continue;
    live.push_back({bitmap.name, bitmap.bits, bitmap.enabled});
  }
  live_.replace(std::move(live));
}

// ---- The directory in the file ----------------------------------------------

std::vector<BitmapEntry> Bitmaps::entries_in_file() const {
  std::vector<BitmapEntry> entries;
  for (const Bitmap& bitmap : bitmaps_) {
    if (bitmap.entry.has_value()) entries.push_back(*bitmap.entry);
  }
  return entries;
}

absl::Status Bitmaps::write_flags(const std::vector<BitmapEntry>& entries) {
  absl::StatusOr<std::vector<uint8_t>> bytes =
      serialize_bitmap_directory(entries);
  if (!bytes.ok()) return bytes.status();
  absl::Status status = image_.file().write(
      Purpose::kBitmapUpdate, bytes->data(), bytes->size(), directory_.offset);
  return status.ok() ? image_.file().flush() : status;
}

absl::Status Bitmaps::mark_in_use() {
  if (may_be_unmarked_) return broken_;
  const std::vector<BitmapEntry> old_entries = entries_in_file();
  std::vector<BitmapEntry> entries = old_entries;
  for (BitmapEntry& entry : entries) entry.flags |= kBitmapInUse;
  if (entries == old_entries) return absl::OkStatus();
  absl::Status status = write_flags(entries);
  if (!status.ok()) {
    // Nothing has been written to the disk yet: they are still right.
    write_flags(old_entries).IgnoreError();
    return status;
  }
  for (Bitmap& bitmap : bitmaps_) {
    if (bitmap.entry.has_value()) bitmap.entry->flags |= kBitmapInUse;
  }
  return status;
}

absl::Status Bitmaps::write_directory(const std::vector<BitmapEntry>& entries,
                                      BitmapDirectory* directory,
                                      ByteRange* place) {
  *directory = {};
  *place = {};
  if (entries.empty()) return absl::OkStatus();
  absl::StatusOr<std::vector<uint8_t>> bytes =
      serialize_bitmap_directory(entries);
  if (!bytes.ok()) return bytes.status();
  const Geometry& geometry = image_.geometry();
  const absl::StatusOr<Allocator::Allocation> allocation =
      image_.allocator().allocate(geometry.clusters_for(bytes->size()));
  if (!allocation.ok()) return allocation.status();
  *place = extent_of(allocation->clusters, geometry);
  image_.allocator().note_published(allocation->clusters);
  directory->count = static_cast<uint32_t>(entries.size());
  directory->offset = place->offset;
  directory->length_bytes = bytes->size();
  return image_.file().write(Purpose::kBitmapUpdate, bytes->data(),
                             bytes->size(), directory->offset);
}

absl::Status Bitmaps::switch_to(const std::vector<BitmapEntry>& entries) {
  const auto clusters_of = [&](ByteRange range) {
    return HostClusters{image_.geometry().cluster_index(range.offset),
                        image_.geometry().cluster_index(range.length)};
  };
  BitmapDirectory directory;
  ByteRange place;
  absl::Status status = write_directory(entries, &directory, &place);
  if (status.ok()) status = image_.rounds().settle();
  BitmapsExtension::State state = BitmapsExtension::State::kOld;
  if (status.ok()) status = extension_.change(directory, &state);
  if (state == BitmapsExtension::State::kUnknown) {
    // Neither directory, nor what they name, is freed.
    broken_ = absl::FailedPreconditionError(
        absl::StrCat("the header could not be written while the bitmap "
                     "directory was replaced: ",
                     status.message()));
    return status;
  }
  if (!status.ok()) {
    if (!place.empty()) image_.allocator().free_unpublished(clusters_of(place));
    return status;
  }
  directory_ = directory;
  const ByteRange old = std::exchange(directory_place_, place);
  image_.extents().remove(old);
  if (!old.empty()) image_.pending().add_durably_dropped(clusters_of(old));
  status = image_.extents().add(MetadataKind::kBitmapDirectory, place);
  if (!status.ok()) return image_.corruption().report(status.message());
  return status;
}

void Bitmaps::free_place(const BitmapPlace& place) {
  remove_extents(place);
  for (const HostClusters& run : place.clusters)
    image_.pending().add_durably_dropped(run);
}

// ---- Storing ----------------------------------------------------------------

BitmapEntry Bitmaps::entry_for(const Bitmap& bitmap,
                               const BitmapPlace& place) const {
  BitmapEntry entry = bitmap.entry.value_or(BitmapEntry());
  entry.table_offset = place.table_offset;
  entry.table_entry_count = place.table_entry_count;
  entry.flags = (entry.flags & kBitmapExtraDataCompatible) |
                (bitmap.enabled ? kBitmapAuto : 0);
  entry.granularity_bits = static_cast<uint8_t>(bitmap.granularity_bits);
  entry.name = bitmap.name;
  return entry;
}

absl::Status Bitmaps::store() {
  if (!loaded_ || bitmaps_.empty()) return absl::OkStatus();
  if (!broken_.ok()) return broken_;
  // What is damaged is left alone: they stay in use.
  if (!image_.corruption().writes_allowed().ok()) return absl::OkStatus();
  const bool unchanged =
      std::all_of(bitmaps_.begin(), bitmaps_.end(), [](const Bitmap& bitmap) {
        return bitmap.entry.has_value() &&
               (bitmap.bits == nullptr || !bitmap.bits->changed());
      });
  return unchanged ? store_in_place() : store_anew();
}

absl::Status Bitmaps::store_in_place() {
  std::vector<BitmapEntry> entries;
  for (const Bitmap& bitmap : bitmaps_) {
    entries.push_back(bitmap.bits == nullptr ? *bitmap.entry
                                             : entry_for(bitmap, bitmap.place));
  }
  if (entries == entries_in_file()) return absl::OkStatus();
  absl::Status status = write_flags(entries);
  if (!status.ok()) {
    // Some may be clear by now; what is written from here on they would miss.
    may_be_unmarked_ = !write_flags(entries_in_file()).ok();
    if (may_be_unmarked_) {
      broken_ = absl::FailedPreconditionError(absl::StrCat(
          "the bitmap directory could not be written: ", status.message()));
    }
    return status;
  }
  for (size_t i = 0; i < entries.size(); ++i)
    bitmaps_[i].entry = std::move(entries[i]);
  return status;
}

absl::Status Bitmaps::store_anew() {
  std::vector<BitmapEntry> entries;
  std::vector<std::optional<BitmapPlace>> places(bitmaps_.size());
  absl::Status status;
  for (size_t i = 0; status.ok() && i < bitmaps_.size(); ++i) {
    const Bitmap& bitmap = bitmaps_[i];
    if (bitmap.bits == nullptr) {
      entries.push_back(*bitmap.entry);
      continue;
    }
    if (!bitmap.entry.has_value() || bitmap.bits->changed()) {
      absl::StatusOr<BitmapPlace> place = write_bitmap(&image_, *bitmap.bits);
      status = place.status();
      if (!status.ok()) break;
      places[i] = *std::move(place);
    }
    entries.push_back(
        entry_for(bitmap, places[i].has_value() ? *places[i] : bitmap.place));
  }
  if (status.ok()) status = switch_to(entries);
  if (!status.ok()) {
    // The header may name the new directory, in which no bitmap is in use.
    may_be_unmarked_ = !broken_.ok();
    for (const std::optional<BitmapPlace>& place : places) {
      if (place.has_value() && broken_.ok()) discard_bitmap(&image_, *place);
    }
    image_.rounds().settle().IgnoreError();  // the first error counts
    return status;
  }
  for (size_t i = 0; i < bitmaps_.size(); ++i) {
    bitmaps_[i].entry = std::move(entries[i]);
    if (!places[i].has_value()) continue;
    free_place(std::exchange(bitmaps_[i].place, *std::move(places[i])));
    bitmaps_[i].bits->mark_unchanged();
    status = enter_place(&bitmaps_[i].place);
    if (!status.ok()) return image_.corruption().report(status.message());
  }
  // What the old ones had is free.
  return image_.rounds().settle();
}

}  // namespace spindle::qcow2

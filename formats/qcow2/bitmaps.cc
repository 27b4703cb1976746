#include "formats/qcow2/bitmaps.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

// As QEMU chooses: the cluster size, but not less and not more than these.
constexpr uint64_t kLeastDefaultGranularity = 4096;
constexpr uint64_t kMostDefaultGranularity = 65536;

bool can_be_used(const BitmapEntry& entry) {
  return !entry.in_use() && entry.is_usable();
}

absl::Status not_found(absl::string_view name) {
  return absl::NotFoundError(
      absl::StrCat("Dirty bitmap '", name, "' not found"));
}

absl::Status inconsistent(absl::string_view name) {
  return absl::FailedPreconditionError(
      absl::StrCat("Bitmap '", name, "' is inconsistent and cannot be used"));
}

}  // namespace

// ---- LiveBitmaps ------------------------------------------------------------

void LiveBitmaps::forget() { replace({}); }

const LiveBitmaps::Live* LiveBitmaps::find(absl::string_view name) const {
  for (const Live& live : bitmaps_) {
    if (live.name == name) return &live;
  }
  return nullptr;
}

void LiveBitmaps::replace(std::vector<Live> bitmaps) {
  bitmaps_ = std::move(bitmaps);
  std::vector<std::shared_ptr<DirtyBitmap>> recording;
  for (const Live& live : bitmaps_) {
    if (live.enabled) recording.push_back(live.bits);
  }
  recorder_.set_bitmaps(std::move(recording));
}

// ---- Loading ----------------------------------------------------------------

Bitmaps::Bitmaps(Image* image, LiveBitmaps* live)
    : image_(*image),
      live_(*live),
      extension_(&image->file(), image->geometry().cluster_bytes()) {}

absl::StatusOr<std::vector<BitmapEntry>> Bitmaps::read_entries() {
  const absl::StatusOr<BitmapDirectory> directory =
      find_bitmap_directory(image_.header());
  if (!directory.ok()) return directory.status();
  return read_bitmap_directory(&image_.file(), image_.header(), *directory);
}

absl::StatusOr<Bitmaps::Bitmap> Bitmaps::load(const BitmapEntry& entry,
                                              uint64_t max_clusters) {
  Bitmap bitmap;
  bitmap.name = entry.name;
  bitmap.granularity_bits = entry.granularity_bits;
  bitmap.enabled = (entry.flags & kBitmapAuto) != 0;
  bitmap.entry = entry;
  const bool usable = can_be_used(entry);
  if (usable) {
    bitmap.bits = std::make_shared<DirtyBitmap>(image_.geometry().size_bytes,
                                                entry.granularity_bytes());
  }
  absl::StatusOr<BitmapPlace> place =
      read_bitmap(&image_.file(), image_.geometry().cluster_bytes(), entry,
                  max_clusters, bitmap.bits.get());
  if (place.ok()) {
    bitmap.place = *std::move(place);
  } else if (usable || !absl::IsDataLoss(place.status())) {
    return place.status();
  }
  // Of a damaged one that cannot be used anyway it is not known where it lies.
  if (usable) bitmap.bits->mark_unchanged();
  return bitmap;
}

void Bitmaps::take_up_live() {
  // The version was lowered: none can be kept.
  if (image_.header().version < kVersion3) return;
  for (const LiveBitmaps::Live& live : live_.bitmaps_) {
    live.bits->resize(image_.geometry().size_bytes);
    const auto found =
        std::find_if(bitmaps_.begin(), bitmaps_.end(),
                     [&](const Bitmap& b) { return b.name == live.name; });
    // Marked by us, or never stored.
    if (found != bitmaps_.end() && found->bits == nullptr) {
      found->bits = live.bits;
      found->enabled = live.enabled;
    } else if (found == bitmaps_.end()) {
      Bitmap bitmap;
      bitmap.name = live.name;
      bitmap.granularity_bits = static_cast<uint32_t>(
          std::countr_zero(live.bits->granularity_bytes()));
      bitmap.enabled = live.enabled;
      bitmap.bits = live.bits;
      bitmaps_.push_back(std::move(bitmap));
    }
  }
}

absl::Status Bitmaps::prepare_for_writing() {
  if (loaded_) return absl::OkStatus();
  const absl::StatusOr<BitmapDirectory> directory =
      find_bitmap_directory(image_.header());
  if (!directory.ok()) return directory.status();
  const absl::StatusOr<std::vector<BitmapEntry>> entries = read_entries();
  if (!entries.ok()) return entries.status();
  uint64_t bytes = 0;
  for (const BitmapEntry& entry : *entries) {
    bytes += divide_round_up(image_.geometry().size_bytes,
                             entry.granularity_bytes() * 8);
    if (bytes > kMaxBitmapsBytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the image's bitmaps up to '", entry.name, "' take ", bytes,
          " bytes of memory: the limit is ", kMaxBitmapsBytes));
    }
  }
  // A sound image has none of its clusters twice.
  uint64_t clusters_left =
      image_.geometry().clusters_for(image_.file().length_bytes());
  bitmaps_.clear();
  bitmaps_.resize(entries->size());
  // Those that cannot be used are in nobody's way.
  for (const bool usable : {true, false}) {
    for (size_t i = 0; i < entries->size(); ++i) {
      if (can_be_used((*entries)[i]) != usable) continue;
      absl::StatusOr<Bitmap> bitmap = load((*entries)[i], clusters_left);
      if (!bitmap.ok()) return bitmap.status();
      clusters_left -= bitmap->place.cluster_count();
      bitmaps_[i] = *std::move(bitmap);
    }
  }
  take_up_live();
  directory_ = *directory;
  directory_place_ = {
      directory_.offset,
      align_up(directory_.length_bytes, image_.geometry().cluster_bytes())};
  loaded_ = true;
  return absl::OkStatus();
}

// ---- The operations ---------------------------------------------------------

absl::StatusOr<std::vector<DirtyBitmapInfo>> Bitmaps::list() {
  const auto info_of = [](const Bitmap& bitmap) {
    DirtyBitmapInfo info;
    info.name = bitmap.name;
    info.granularity_bytes = uint64_t{1} << bitmap.granularity_bits;
    info.enabled = bitmap.enabled;
    info.inconsistent = bitmap.bits == nullptr;
    if (!info.inconsistent) info.dirty_bytes = bitmap.bits->dirty_bytes();
    return info;
  };
  std::vector<DirtyBitmapInfo> infos;
  if (loaded_) {
    for (const Bitmap& bitmap : bitmaps_) infos.push_back(info_of(bitmap));
    return infos;
  }
  // Open for reading: nothing is kept, so that several may ask at a time.
  const absl::StatusOr<std::vector<BitmapEntry>> entries = read_entries();
  if (!entries.ok()) return entries.status();
  for (const BitmapEntry& entry : *entries) {
    const absl::StatusOr<Bitmap> bitmap = load(
        entry, image_.geometry().clusters_for(image_.file().length_bytes()));
    if (!bitmap.ok()) return bitmap.status();
    infos.push_back(info_of(*bitmap));
  }
  return infos;
}

absl::StatusOr<std::shared_ptr<const DirtyBitmap>> Bitmaps::find(
    absl::string_view name) {
  if (loaded_) {
    const absl::StatusOr<Bitmap*> bitmap = find_usable(name);
    if (!bitmap.ok()) return bitmap.status();
    return std::shared_ptr<const DirtyBitmap>((*bitmap)->bits);
  }
  const absl::StatusOr<std::vector<BitmapEntry>> entries = read_entries();
  if (!entries.ok()) return entries.status();
  for (const BitmapEntry& entry : *entries) {
    if (entry.name != name) continue;
    const absl::StatusOr<Bitmap> bitmap = load(
        entry, image_.geometry().clusters_for(image_.file().length_bytes()));
    if (!bitmap.ok()) return bitmap.status();
    if (bitmap->bits == nullptr) return inconsistent(name);
    return std::shared_ptr<const DirtyBitmap>(bitmap->bits);
  }
  return not_found(name);
}

absl::StatusOr<Bitmaps::Bitmap*> Bitmaps::find_usable(absl::string_view name) {
  for (Bitmap& bitmap : bitmaps_) {
    if (bitmap.name != name) continue;
    if (bitmap.bits == nullptr) return inconsistent(name);
    return &bitmap;
  }
  return not_found(name);
}

uint64_t Bitmaps::default_granularity() const {
  return std::clamp(image_.geometry().cluster_bytes(), kLeastDefaultGranularity,
                    kMostDefaultGranularity);
}

absl::Status Bitmaps::check_sizes(uint64_t length_bytes,
                                  std::optional<uint32_t> added_bits) const {
  uint64_t all = 0;
  uint64_t largest = 0;
  const auto count = [&](uint32_t granularity_bits) {
    const uint64_t bytes =
        divide_round_up(length_bytes, uint64_t{8} << granularity_bits);
    all += bytes;
    largest = std::max(largest, bytes);
  };
  for (const Bitmap& bitmap : bitmaps_) count(bitmap.granularity_bits);
  if (added_bits.has_value()) count(*added_bits);
  if (largest <= kMaxBitmapBytes && all <= kMaxBitmapsBytes)
    return absl::OkStatus();
  return absl::ResourceExhaustedError(
      "Too much space will be occupied by the bitmap. Use larger granularity");
}

absl::Status Bitmaps::check_new(const NewDirtyBitmap& wanted,
                                uint64_t granularity) {
  if (wanted.name.empty())
    return absl::InvalidArgumentError("Bitmap name cannot be empty");
  for (const Bitmap& bitmap : bitmaps_) {
    if (bitmap.name == wanted.name) {
      return absl::AlreadyExistsError(
          absl::StrCat("Bitmap already exists: ", wanted.name));
    }
  }
  if (!is_power_of_two(granularity) ||
      granularity < DirtyBitmap::kMinGranularityBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("Granularity must be power of 2 and at least ",
                     DirtyBitmap::kMinGranularityBytes));
  }
  const auto cannot_keep = [&](absl::StatusCode code, absl::string_view why) {
    return absl::Status(
        code,
        absl::StrCat("Can't make bitmap '", wanted.name, "' persistent in '",
                     image_.file().child().filename(), "': ", why));
  };
  if (image_.header().version < kVersion3) {
    return cannot_keep(absl::StatusCode::kFailedPrecondition,
                       "Cannot store dirty bitmaps in qcow2 v2 files");
  }
  if (granularity > DirtyBitmap::kMaxGranularityBytes) {
    return with_qemu_words(
        cannot_keep(absl::StatusCode::kInvalidArgument,
                    absl::StrCat("Granularity exceeds maximum (",
                                 DirtyBitmap::kMaxGranularityBytes, " bytes)")),
        absl::StrCat("Granularity must be power of 2 and at least ",
                     DirtyBitmap::kMinGranularityBytes));
  }
  if (wanted.name.size() > kMaxBitmapNameBytes) {
    return cannot_keep(absl::StatusCode::kInvalidArgument,
                       absl::StrCat("Name length exceeds maximum (",
                                    kMaxBitmapNameBytes, " characters)"));
  }
  if (bitmaps_.size() >= kMaxBitmapCount) {
    return cannot_keep(
        absl::StatusCode::kResourceExhausted,
        absl::StrCat(
            "Maximum number of persistent bitmaps is already reached"));
  }
  BitmapEntry entry;
  entry.name = wanted.name;
  uint64_t directory_bytes = entry.length_bytes();
  for (const Bitmap& bitmap : bitmaps_)
    directory_bytes += entry_for(bitmap, bitmap.place).length_bytes();
  if (directory_bytes > kMaxBitmapDirectoryBytes) {
    return cannot_keep(absl::StatusCode::kResourceExhausted,
                       "Not enough space in the bitmap directory");
  }
  absl::Status status =
      check_sizes(image_.geometry().size_bytes,
                  static_cast<uint32_t>(std::countr_zero(granularity)));
  if (status.ok()) status = extension_.check_room();
  if (status.ok()) return status;
  return cannot_keep(status.code(), status.message());
}

absl::Status Bitmaps::add(const NewDirtyBitmap& wanted) {
  if (!broken_.ok()) return broken_;
  const uint64_t granularity = wanted.granularity_bytes == 0
                                   ? default_granularity()
                                   : wanted.granularity_bytes;
  absl::Status status = check_new(wanted, granularity);
  if (!status.ok()) return status;
  Bitmap bitmap;
  bitmap.name = wanted.name;
  bitmap.granularity_bits =
      static_cast<uint32_t>(std::countr_zero(granularity));
  bitmap.enabled = wanted.enabled;
  bitmap.bits =
      std::make_shared<DirtyBitmap>(image_.geometry().size_bytes, granularity);
  bitmaps_.push_back(std::move(bitmap));
  update_live();
  return status;
}

absl::Status Bitmaps::remove(absl::string_view name) {
  const auto found =
      std::find_if(bitmaps_.begin(), bitmaps_.end(),
                   [&](const Bitmap& bitmap) { return bitmap.name == name; });
  if (found == bitmaps_.end()) return not_found(name);
  absl::Status status;
  if (found->entry.has_value()) {
    status = broken_;
    if (status.ok()) status = image_.corruption().writes_allowed();
    if (!status.ok()) return status;
    std::vector<BitmapEntry> rest;
    for (const Bitmap& bitmap : bitmaps_) {
      if (&bitmap != &*found && bitmap.entry.has_value())
        rest.push_back(*bitmap.entry);
    }
    status = switch_to(rest);
    if (!status.ok()) return status;
    free_place(found->place);
    status = image_.rounds().settle();
  }
  bitmaps_.erase(found);
  update_live();
  return status;
}

absl::Status Bitmaps::clear(absl::string_view name) {
  const absl::StatusOr<Bitmap*> bitmap = find_usable(name);
  if (bitmap.ok()) (*bitmap)->bits->clear();
  return bitmap.status();
}

absl::Status Bitmaps::enable(absl::string_view name, bool enabled) {
  const absl::StatusOr<Bitmap*> bitmap = find_usable(name);
  if (!bitmap.ok()) return bitmap.status();
  (*bitmap)->enabled = enabled;
  update_live();
  return absl::OkStatus();
}

absl::Status Bitmaps::merge(absl::string_view name, const DirtyBitmap& source) {
  const absl::StatusOr<Bitmap*> bitmap = find_usable(name);
  if (!bitmap.ok()) return bitmap.status();
  return (*bitmap)->bits->merge(source);
}

absl::Status Bitmaps::check_resize(uint64_t length_bytes) const {
  for (const Bitmap& bitmap : bitmaps_) {
    if (bitmap.bits == nullptr) return inconsistent(bitmap.name);
  }
  return check_sizes(length_bytes, std::nullopt);
}

void Bitmaps::resize(uint64_t length_bytes) {
  for (Bitmap& bitmap : bitmaps_) {
    if (bitmap.bits != nullptr) bitmap.bits->resize(length_bytes);
  }
}

}  // namespace spindle::qcow2

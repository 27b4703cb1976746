#include "formats/cluster/metadata_extents.h"

#include <iterator>

#include "absl/strings/str_cat.h"

namespace spindle {

absl::string_view metadata_kind_name(MetadataKind kind) {
  switch (kind) {
    case MetadataKind::kHeader:
      return "header";
    case MetadataKind::kL1Table:
      return "L1 table";
    case MetadataKind::kL2Table:
      return "L2 table";
    case MetadataKind::kRefcountTable:
      return "refcount table";
    case MetadataKind::kRefcountBlock:
      return "refcount block";
    case MetadataKind::kSnapshotTable:
      return "snapshot table";
    case MetadataKind::kSnapshotL1Table:
      return "snapshot's L1 table";
    case MetadataKind::kBitmapDirectory:
      return "bitmap directory";
    case MetadataKind::kBitmap:
      return "dirty bitmap";
    case MetadataKind::kEncryptionHeader:
      return "encryption header";
  }
  return "metadata";
}

absl::Status MetadataExtents::add(MetadataKind kind, ByteRange range) {
  if (range.empty()) return absl::OkStatus();
  MetadataLock lock(&mutex_);
  if (const std::optional<MetadataKind> other = find_overlap_locked(range)) {
    return absl::DataLossError(
        absl::StrCat(metadata_kind_name(kind), " at host offset ", range.offset,
                     ", ", range.length, " bytes long, overlaps the image's ",
                     metadata_kind_name(*other)));
  }
  extents_[range.offset] = Extent{range.end(), kind};
  return absl::OkStatus();
}

void MetadataExtents::remove(ByteRange range) {
  if (range.empty()) return;
  MetadataLock lock(&mutex_);
  extents_.erase(range.offset);
}

void MetadataExtents::clear() {
  MetadataLock lock(&mutex_);
  extents_.clear();
}

std::optional<MetadataKind> MetadataExtents::find_overlap(
    ByteRange range) const {
  MetadataReaderLock lock(&mutex_);
  return find_overlap_locked(range);
}

std::optional<MetadataKind> MetadataExtents::find_overlap_locked(
    ByteRange range) const {
  // The last extent that begins before the end of `range` is the only one that
  // can reach into it from the left, and the nearest of those that begin in it.
  auto next = extents_.lower_bound(range.end());
  if (next == extents_.begin()) return std::nullopt;
  const Extent& extent = std::prev(next)->second;
  if (extent.end <= range.offset) return std::nullopt;
  return extent.kind;
}

}  // namespace spindle

#include "formats/qcow2/vmstate.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/image_size.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kMaxEntries = kMaxL1TableBytes / kL1EntryBytes;

}  // namespace

uint64_t VmState::l1_end() const {
  return image_.l1().entry_count() *
         image_.geometry().l1_entry_coverage_bytes();
}

absl::StatusOr<ByteRange> VmState::place_of(ByteRange area) const {
  const Geometry& geometry = image_.geometry();
  const uint64_t coverage = geometry.l1_entry_coverage_bytes();
  const uint64_t begin =
      geometry.l1_entries_for(geometry.size_bytes) * coverage;
  const std::optional<uint64_t> limit = checked_multiply(kMaxEntries, coverage);
  const uint64_t most = std::min(limit.value_or(kMaxSizeBytes), kMaxSizeBytes);
  if (begin <= most && area.length <= most - begin &&
      area.offset <= most - begin - area.length) {
    return ByteRange{begin + area.offset, area.length};
  }
  // A guest is told what QEMU tells it.
  return with_errno(EFBIG, absl::OutOfRangeError(absl::StrCat(
                               "vmstate of ", area.length, " bytes at ",
                               area.offset, ", behind a disk of ",
                               geometry.size_bytes, " bytes, ends beyond ",
                               most, ", the most that an L1 table can name")));
}

absl::Status VmState::read(const IoVector& qiov, uint64_t position) {
  const absl::StatusOr<ByteRange> place =
      place_of({position, qiov.length_bytes()});
  if (!place.ok()) return place.status();
  const uint64_t within =
      std::min(std::max(l1_end(), place->offset), place->end()) - place->offset;
  qiov.fill(within, place->length - within, 0);
  return within == 0
             ? absl::OkStatus()
             : read_stored(qiov.slice(0, within), {place->offset, within});
}

ByteRange VmState::moved_for(ByteRange stored) const {
  if (!image_.transfer().is_encrypted()) return stored;
  const uint64_t begin = align_down(stored.offset, kSectorSizeBytes);
  return {begin, align_up(stored.end(), kSectorSizeBytes) - begin};
}

absl::Status VmState::read_stored(const IoVector& qiov, ByteRange stored) {
  const ByteRange moved = moved_for(stored);
  if (moved == stored) return reader_.read({stored.offset}, qiov);
  std::vector<uint8_t> bytes(moved.length);
  absl::Status status =
      reader_.read({moved.offset}, IoVector(bytes.data(), bytes.size()));
  if (status.ok()) {
    qiov.copy_from(0, bytes.data() + (stored.offset - moved.offset),
                   stored.length);
  }
  return status;
}

absl::StatusOr<bool> VmState::has_room(ByteRange area) const {
  const absl::StatusOr<ByteRange> place = place_of(area);
  if (!place.ok()) return place.status();
  return place->end() <= l1_end();
}

absl::Status VmState::make_room(ByteRange area) {
  const absl::StatusOr<ByteRange> place = place_of(area);
  if (!place.ok()) return place.status();
  const uint64_t needed = image_.geometry().l1_entries_for(place->end());
  uint64_t entries = std::max<uint64_t>(image_.l1().entry_count(), 1);
  while (entries < needed) entries = divide_round_up(entries * 3, 2);
  return grow_l1(&image_, std::min(entries, kMaxEntries));
}

absl::Status VmState::write(const IoVector& qiov, uint64_t position) {
  const absl::StatusOr<ByteRange> place =
      place_of({position, qiov.length_bytes()});
  if (!place.ok()) return place.status();
  if (!image_.transfer().is_encrypted())
    return writer_.write({place->offset}, qiov);
  const ByteRange moved = moved_for(*place);
  const bool is_whole = moved == *place;
  const RangeTracker::Hold hold(
      &sectors_, moved,
      is_whole ? RangeTracker::Mode::kShared : RangeTracker::Mode::kExclusive);
  if (is_whole) return writer_.write({place->offset}, qiov);
  std::vector<uint8_t> bytes(moved.length);
  const IoVector sectors(bytes.data(), bytes.size());
  absl::Status status = reader_.read({moved.offset}, sectors);
  if (!status.ok()) return status;
  qiov.copy_to(0, bytes.data() + (place->offset - moved.offset), place->length);
  return writer_.write({moved.offset}, sectors);
}

}  // namespace spindle::qcow2

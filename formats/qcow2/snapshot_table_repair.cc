#include "formats/qcow2/snapshot_table_repair.h"

#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

constexpr size_t kPieceBytes = size_t{64} << 10;

}  // namespace

// ---- Reading ----------------------------------------------------------------

absl::Status SnapshotTableRepair::check_place() const {
  const Header& header = context_->header;
  if (header.snapshot_count > kMaxSnapshotCount &&
      !context_->options.fix_errors) {
    context_->say("ERROR snapshot table too large");
    return errno_status(
        EFBIG, absl::StrCat("nb_snapshots is ", header.snapshot_count,
                            ": the limit is ", kMaxSnapshotCount,
                            "; a repair of errors drops those beyond it"));
  }
  // The least that its entries can take.
  const uint64_t bytes =
      uint64_t{header.snapshot_count} * kMinSnapshotEntryBytes;
  if (is_aligned(header.snapshots_offset, header.cluster_size_bytes()) &&
      header.snapshots_offset <= kMaxSizeBytes - bytes) {
    return absl::OkStatus();
  }
  context_->say("ERROR snapshot table offset invalid");
  return errno_status(
      EINVAL, absl::StrCat("snapshots_offset is ", header.snapshots_offset,
                           ": it must be a multiple of the cluster size, ",
                           header.cluster_size_bytes(), ", and below 2^63"));
}

absl::Status SnapshotTableRepair::read() {
  Header& header = context_->header;
  const bool repairs = context_->options.fix_errors;
  absl::Status status = check_place();
  if (!status.ok()) return status;
  const uint32_t stated = header.snapshot_count;
  if (stated > kMaxSnapshotCount) {
    context_->say(absl::StrFormat("Discarding %d overhanging snapshots",
                                  stated - kMaxSnapshotCount));
    header.snapshot_count = kMaxSnapshotCount;
  }
  status = read_entries();
  if (status.ok() && header.snapshot_count < stated)
    status = drop_snapshots(stated - header.snapshot_count);
  if (!status.ok() || header.version < kVersion3) return status;
  // Said when it is known how many there are.
  SnapshotTableReader reader(context_->file, header, LongExtraData::kCut);
  while (!reader.at_end()) {
    status = context_->next_piece();
    if (!status.ok()) return status;
    const uint32_t index = reader.index();
    const absl::StatusOr<Snapshot> snapshot = reader.next();
    if (!snapshot.ok()) return snapshot.status();
    if (snapshot->is_complete()) continue;
    ++corruptions_;
    context_->say(absl::StrFormat("%s snapshot table entry %d is incomplete",
                                  repairs ? "Repairing" : "ERROR", index));
  }
  return status;
}

absl::Status SnapshotTableRepair::read_entries() {
  Header& header = context_->header;
  const bool repairs = context_->options.fix_errors;
  SnapshotTableReader reader(
      context_->file, header,
      repairs ? LongExtraData::kCut : LongExtraData::kRefuse);
  while (!reader.at_end()) {
    absl::Status status = context_->next_piece();
    if (!status.ok()) return status;
    const uint32_t index = reader.index();
    const absl::StatusOr<Snapshot> snapshot = reader.next();
    const bool too_long = !snapshot.ok() && reader.is_too_long() && repairs;
    if (!snapshot.ok() && !too_long) {
      context_->say(absl::StrCat("ERROR failed to read the snapshot table: ",
                                 snapshot.status().message()));
      return snapshot.status().code() == absl::StatusCode::kDataLoss
                 ? errno_status(EFBIG, snapshot.status().message())
                 : snapshot.status();
    }
    if (reader.extra_bytes() > kMaxSnapshotExtraBytes) {
      ++corruptions_;
      context_->say(absl::StrFormat(
          "Discarding too much extra metadata in snapshot table entry %d (%d > "
          "%d)",
          index, reader.extra_bytes(), kMaxSnapshotExtraBytes));
    }
    if (too_long) {
      context_->say(absl::StrFormat(
          "Discarding %d overhanging snapshots (snapshot table is too big)",
          header.snapshot_count - index));
      header.snapshot_count = index;
      break;
    }
    l1_entry_count_ += snapshot->l1_entry_count;
  }
  return absl::OkStatus();
}

absl::Status SnapshotTableRepair::drop_snapshots(uint32_t count) {
  std::array<uint8_t, 4> field{};
  store_big32(field.data(), context_->header.snapshot_count);
  absl::Status status = context_->file->write(
      Purpose::kHeaderUpdate, field.data(), field.size(), kSnapshotCountOffset);
  if (status.ok()) status = context_->file->flush();
  if (status.ok()) context_->result.corruptions_fixed += count;
  return status;
}

// ---- Writing ----------------------------------------------------------------

absl::Status SnapshotTableRepair::serialize(Sink sink) const {
  SnapshotTableReader reader(context_->file, context_->header,
                             LongExtraData::kCut);
  std::vector<uint8_t> piece;
  uint64_t before = 0;
  while (!reader.at_end()) {
    absl::Status status = context_->next_piece();
    if (!status.ok()) return status;
    const absl::StatusOr<Snapshot> snapshot = reader.next();
    if (!snapshot.ok()) return snapshot.status();
    status = append_snapshot(*snapshot, &piece);
    if (!status.ok()) return status;
    if (before + piece.size() > kMaxSnapshotTableBytes) {
      return errno_status(EFBIG, absl::StrCat("the snapshot table would have ",
                                              before + piece.size(),
                                              " bytes and more: the limit is ",
                                              kMaxSnapshotTableBytes));
    }
    if (piece.size() < kPieceBytes && !reader.at_end()) continue;
    if (!reader.at_end())
      piece.resize(align_up(piece.size(), kSnapshotAlignment));
    status = sink(piece);
    if (!status.ok()) return status;
    before += piece.size();
    piece.clear();
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SnapshotTableRepair::new_length_bytes() const {
  uint64_t length = 0;
  absl::Status status = serialize([&length](absl::Span<const uint8_t> bytes) {
    length += bytes.size();
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return length;
}

absl::Status SnapshotTableRepair::write_new_table(uint64_t offset) const {
  return serialize([&](absl::Span<const uint8_t> bytes) {
    absl::Status status = context_->file->write(
        Purpose::kSnapshotUpdate, bytes.data(), bytes.size(), offset);
    offset += bytes.size();
    return status;
  });
}

absl::Status SnapshotTableRepair::switch_header(uint64_t offset) {
  std::array<uint8_t, 8> field{};
  store_big64(field.data(), offset);
  absl::Status status =
      context_->file->write(Purpose::kHeaderUpdate, field.data(), field.size(),
                            kSnapshotsOffsetOffset);
  if (status.ok()) status = context_->file->flush();
  if (!status.ok()) return status;
  context_->header.snapshots_offset = offset;
  context_->result.corruptions_fixed += std::exchange(corruptions_, 0);
  return status;
}

}  // namespace spindle::qcow2

#include "formats/qcow2/snapshot_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

static_assert(kMinSnapshotEntryBytes == kSnapshotExtraOffset);

// What a reader asks the file for at once.
constexpr uint64_t kReadAheadBytes = uint64_t{64} << 10;

constexpr uint64_t kMaxStringBytes = UINT16_MAX;  // id and name: 16 bits each

struct Lengths {
  uint64_t extra;
  uint64_t id;
  uint64_t name;
  // Without padding.  Far from overflow: 32 and twice 16 bits.
  uint64_t total() const { return kSnapshotExtraOffset + extra + id + name; }
};

Lengths lengths_of(absl::Span<const uint8_t> head) {
  return {load_big32(&head[kSnapshotExtraSizeOffset]),
          load_big16(&head[kSnapshotIdSizeOffset]),
          load_big16(&head[kSnapshotNameSizeOffset])};
}

absl::Status over_limit(absl::string_view field, uint64_t value,
                        uint64_t limit) {
  return absl::DataLossError(
      absl::StrCat("qcow2: ", field, " is ", value, ": the limit is ", limit));
}

// To other implementations a string ends at the first zero byte.
std::string c_string(absl::Span<const uint8_t> bytes) {
  return std::string(bytes.begin(), std::find(bytes.begin(), bytes.end(), 0));
}

void parse_extra(absl::Span<const uint8_t> extra, Snapshot* snapshot) {
  if (extra.size() >= kSnapshotExtraDiskSizeOffset) {
    snapshot->info.vm_state_bytes =
        load_big64(&extra[kSnapshotExtraVmStateSizeOffset]);
  }
  if (extra.size() >= kSnapshotExtraIcountOffset) {
    snapshot->info.disk_size_bytes =
        load_big64(&extra[kSnapshotExtraDiskSizeOffset]);
  }
  if (extra.size() < kSnapshotExtraKnownBytes) return;
  const uint64_t icount = load_big64(&extra[kSnapshotExtraIcountOffset]);
  if (icount != kSnapshotNoIcount) snapshot->info.instruction_count = icount;
  snapshot->unknown_extra.assign(extra.begin() + kSnapshotExtraKnownBytes,
                                 extra.end());
}

absl::Status check_limits(const Snapshot& snapshot) {
  const uint64_t extra =
      kSnapshotExtraKnownBytes + snapshot.unknown_extra.size();
  const struct {
    absl::string_view name;
    uint64_t value;
    uint64_t limit;
  } checks[] = {
      {"length of a snapshot's id", snapshot.info.id.size(), kMaxStringBytes},
      {"length of a snapshot's name", snapshot.info.name.size(),
       kMaxStringBytes},
      {"length of a snapshot's extra data", extra, kMaxSnapshotExtraBytes},
  };
  for (const auto& check : checks) {
    if (check.value > check.limit) {
      return absl::ResourceExhaustedError(
          absl::StrCat("qcow2: ", check.name, " is ", check.value,
                       ": the limit is ", check.limit));
    }
  }
  return absl::OkStatus();
}

void append_entry(const Snapshot& snapshot, std::vector<uint8_t>* out) {
  const SnapshotInfo& info = snapshot.info;
  out->resize(align_up(out->size(), kSnapshotAlignment));
  const size_t start = out->size();
  out->resize(start + kSnapshotExtraOffset + kSnapshotExtraKnownBytes);
  uint8_t* const to = out->data() + start;
  store_big64(to + kSnapshotL1OffsetOffset, snapshot.l1_table_offset);
  store_big32(to + kSnapshotL1SizeOffset, snapshot.l1_entry_count);
  store_big16(to + kSnapshotIdSizeOffset,
              static_cast<uint16_t>(info.id.size()));
  store_big16(to + kSnapshotNameSizeOffset,
              static_cast<uint16_t>(info.name.size()));
  store_big32(to + kSnapshotDateSecondsOffset, info.date_seconds);
  store_big32(to + kSnapshotDateNanosecondsOffset, info.date_nanoseconds);
  store_big64(to + kSnapshotVmClockOffset, info.vm_clock_nanoseconds);
  // Not the low half of a longer one: whoever knows only this field would take
  // it for the whole.
  store_big32(to + kSnapshotVmStateSizeOffset,
              info.vm_state_bytes <= UINT32_MAX
                  ? static_cast<uint32_t>(info.vm_state_bytes)
                  : 0);
  store_big32(to + kSnapshotExtraSizeOffset,
              static_cast<uint32_t>(kSnapshotExtraKnownBytes +
                                    snapshot.unknown_extra.size()));
  uint8_t* const extra = to + kSnapshotExtraOffset;
  store_big64(extra + kSnapshotExtraVmStateSizeOffset, info.vm_state_bytes);
  store_big64(extra + kSnapshotExtraDiskSizeOffset, info.disk_size_bytes);
  store_big64(extra + kSnapshotExtraIcountOffset,
              info.instruction_count.value_or(kSnapshotNoIcount));
  for (const std::string* text :
       {&snapshot.unknown_extra, &info.id, &info.name}) {
    out->insert(out->end(), text->begin(), text->end());
  }
}

}  // namespace

uint64_t snapshot_entry_bytes(absl::Span<const uint8_t> head) {
  return align_up(lengths_of(head).total(), kSnapshotAlignment);
}

absl::StatusOr<Snapshot> parse_snapshot(absl::Span<const uint8_t> bytes,
                                        uint64_t disk_size_bytes) {
  const auto cut_short = [&](uint64_t needed) {
    return absl::DataLossError(
        absl::StrCat("qcow2: a snapshot table entry takes ", needed,
                     " bytes, and the table ends after ", bytes.size()));
  };
  if (bytes.size() < kMinSnapshotEntryBytes)
    return cut_short(kMinSnapshotEntryBytes);
  const Lengths lengths = lengths_of(bytes);
  if (lengths.extra > kMaxSnapshotExtraBytes) {
    return over_limit("length of a snapshot's extra data", lengths.extra,
                      kMaxSnapshotExtraBytes);
  }
  if (bytes.size() < lengths.total()) return cut_short(lengths.total());

  Snapshot snapshot;
  snapshot.l1_table_offset = load_big64(&bytes[kSnapshotL1OffsetOffset]);
  snapshot.l1_entry_count = load_big32(&bytes[kSnapshotL1SizeOffset]);
  snapshot.extra_bytes = static_cast<uint32_t>(lengths.extra);
  SnapshotInfo& info = snapshot.info;
  info.date_seconds = load_big32(&bytes[kSnapshotDateSecondsOffset]);
  info.date_nanoseconds = load_big32(&bytes[kSnapshotDateNanosecondsOffset]);
  info.vm_clock_nanoseconds = load_big64(&bytes[kSnapshotVmClockOffset]);
  info.vm_state_bytes = load_big32(&bytes[kSnapshotVmStateSizeOffset]);
  info.disk_size_bytes = disk_size_bytes;
  bytes.remove_prefix(kSnapshotExtraOffset);
  parse_extra(bytes.first(lengths.extra), &snapshot);
  bytes.remove_prefix(lengths.extra);
  info.id = c_string(bytes.first(lengths.id));
  bytes.remove_prefix(lengths.id);
  info.name = c_string(bytes.first(lengths.name));
  return snapshot;
}

absl::Status check_snapshot_l1(const Snapshot& snapshot, uint64_t cluster_bytes,
                               uint64_t file_length_bytes) {
  const uint64_t bytes = uint64_t{snapshot.l1_entry_count} * kL1EntryBytes;
  if (bytes > kMaxL1TableBytes) {
    return absl::DataLossError(
        absl::StrCat("the L1 table of snapshot '", snapshot.info.id, "' has ",
                     bytes, " bytes: the limit is ", kMaxL1TableBytes));
  }
  const uint64_t file_end = align_up(file_length_bytes, cluster_bytes);
  if (is_aligned(snapshot.l1_table_offset, cluster_bytes) &&
      snapshot.l1_table_offset <= file_end &&
      bytes <= file_end - snapshot.l1_table_offset) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      "the L1 table of snapshot '", snapshot.info.id, "' at host offset ",
      snapshot.l1_table_offset, ", ", bytes,
      " bytes long, is not aligned to clusters or ends beyond the file's ",
      file_length_bytes, " bytes"));
}

SnapshotTableReader::SnapshotTableReader(ByteChannel* file,
                                         const Header& header,
                                         LongExtraData long_extra)
    : file_(file),
      offset_(header.snapshots_offset),
      count_(header.snapshot_count),
      long_extra_(long_extra),
      disk_size_bytes_(header.size_bytes) {}

absl::Status SnapshotTableReader::fill(uint64_t bytes) {
  if (position_ >= buffer_start_ &&
      position_ + bytes <= buffer_start_ + buffer_.size()) {
    return absl::OkStatus();
  }
  const std::optional<uint64_t> start = checked_add(offset_, position_);
  if (!start.has_value() ||
      *start > kMaxSizeBytes - std::max(bytes, kReadAheadBytes)) {
    return absl::DataLossError("qcow2: it lies beyond what a file can have");
  }
  buffer_.resize(std::max(bytes, kReadAheadBytes));
  buffer_start_ = position_;
  return file_->read(Purpose::kHeaderLoad, buffer_.data(), buffer_.size(),
                     *start);
}

absl::Status SnapshotTableReader::take(uint64_t bytes,
                                       std::vector<uint8_t>* entry) {
  absl::Status status = fill(bytes);
  if (!status.ok()) return status;
  const auto begin =
      buffer_.begin() + static_cast<ptrdiff_t>(position_ - buffer_start_);
  entry->insert(entry->end(), begin, begin + static_cast<ptrdiff_t>(bytes));
  position_ += bytes;
  return status;
}

absl::Status SnapshotTableReader::keep(uint64_t kept_bytes,
                                       uint64_t cut_bytes) {
  kept_bytes_ = align_up(kept_bytes_, kSnapshotAlignment) + kept_bytes;
  // The fixed part was read.
  const uint64_t end =
      position_ - kMinSnapshotEntryBytes + kept_bytes + cut_bytes;
  too_long_ =
      kept_bytes_ > kMaxSnapshotTableBytes || end > kMaxUncutSnapshotTableBytes;
  return too_long_ ? over_limit("length of the snapshot table", end,
                                kMaxSnapshotTableBytes)
                   : absl::OkStatus();
}

absl::StatusOr<Snapshot> SnapshotTableReader::read_entry() {
  extra_bytes_ = 0;
  std::vector<uint8_t> entry;
  absl::Status status = take(kMinSnapshotEntryBytes, &entry);
  if (!status.ok()) return status;
  const Lengths lengths = lengths_of(entry);
  extra_bytes_ = lengths.extra;
  if (lengths.extra > kMaxSnapshotExtraBytes &&
      long_extra_ == LongExtraData::kRefuse) {
    return over_limit("length of its extra data", lengths.extra,
                      kMaxSnapshotExtraBytes);
  }
  const uint64_t kept_extra =
      std::min<uint64_t>(lengths.extra, kMaxSnapshotExtraBytes);
  const uint64_t strings = lengths.id + lengths.name;
  status = keep(kSnapshotExtraOffset + kept_extra + strings,
                lengths.extra - kept_extra);
  if (status.ok()) status = take(kept_extra, &entry);
  position_ += lengths.extra - kept_extra;
  if (status.ok()) status = take(strings, &entry);
  if (!status.ok()) return status;
  store_big32(&entry[kSnapshotExtraSizeOffset],
              static_cast<uint32_t>(kept_extra));
  absl::StatusOr<Snapshot> snapshot = parse_snapshot(entry, disk_size_bytes_);
  if (!snapshot.ok()) return snapshot;
  length_bytes_ = position_;
  position_ = align_up(position_, kSnapshotAlignment);
  return snapshot;
}

absl::StatusOr<Snapshot> SnapshotTableReader::next() {
  absl::StatusOr<Snapshot> snapshot = read_entry();
  if (!snapshot.ok()) {
    return with_context(snapshot.status(),
                        absl::StrCat("snapshot table entry ", index_));
  }
  ++index_;
  return snapshot;
}

absl::StatusOr<std::vector<Snapshot>> read_snapshot_table(
    ByteChannel* file, const Header& header) {
  SnapshotTableReader reader(file, header);
  const uint64_t file_length = file->length_bytes();
  const uint64_t room =
      file_length - std::min(file_length, header.snapshots_offset);
  std::vector<Snapshot> snapshots;
  while (!reader.at_end()) {
    absl::StatusOr<Snapshot> snapshot = reader.next();
    if (!snapshot.ok()) return snapshot.status();
    if (reader.length_bytes() > room) {
      return absl::DataLossError(absl::StrCat(
          "snapshot table entry ", snapshots.size(), " ends ",
          reader.length_bytes(), " bytes behind the table's start at ",
          header.snapshots_offset, ", beyond the end of the file"));
    }
    snapshots.push_back(*std::move(snapshot));
  }
  return snapshots;
}

absl::Status append_snapshot(const Snapshot& snapshot,
                             std::vector<uint8_t>* table) {
  absl::Status status = check_limits(snapshot);
  if (status.ok()) append_entry(snapshot, table);
  return status;
}

absl::StatusOr<std::vector<uint8_t>> serialize_snapshot_table(
    absl::Span<const Snapshot> snapshots) {
  const auto exhausted = [](absl::string_view what, uint64_t value,
                            uint64_t limit) {
    return absl::ResourceExhaustedError(
        absl::StrCat("qcow2: ", what, " is ", value, ": the limit is ", limit));
  };
  if (snapshots.size() > kMaxSnapshotCount) {
    return exhausted("number of snapshots", snapshots.size(),
                     kMaxSnapshotCount);
  }
  std::vector<uint8_t> out;
  for (const Snapshot& snapshot : snapshots) {
    absl::Status status = append_snapshot(snapshot, &out);
    if (!status.ok()) return status;
    if (out.size() > kMaxSnapshotTableBytes) {
      return exhausted("length of the snapshot table", out.size(),
                       kMaxSnapshotTableBytes);
    }
  }
  return out;
}

}  // namespace spindle::qcow2

// The snapshot table: parsed and serialised.  qcow2 specification, "Snapshots".
//
// Entries vary in length, and the header states only their number and where
// the first one stands.  Every number in them is hostile: compared with a named
// limit (layout.h) before it sizes anything.  What an entry's L1 table is
// worth, its user decides: neither its place nor its size is checked here.
//
// Thread safety: values and pure functions; a reader belongs to one thread.
#ifndef SPINDLE_FORMATS_QCOW2_SNAPSHOT_TABLE_H_
#define SPINDLE_FORMATS_QCOW2_SNAPSHOT_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/byte_channel.h"
#include "engine/snapshot.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {

struct Snapshot {
  // Where the entry states no length of the disk, disk_size_bytes is the
  // image's.
  SnapshotInfo info;
  uint64_t l1_table_offset = 0;
  uint32_t l1_entry_count = 0;
  // How much extra data the entry has in the file; 0 if it is new.  What is
  // written has at least kSnapshotExtraKnownBytes.
  uint32_t extra_bytes = 0;
  // What follows the extra data that is known here; kept as it is.
  std::string unknown_extra;

  // Version 3 demands the 64-bit vmstate size and the disk's length.
  bool is_complete() const {
    return extra_bytes >= kSnapshotExtraVersion3Bytes;
  }
};

// How many bytes the entry that begins with `head` takes, padding included.
// REQUIRES: head.size() >= kMinSnapshotEntryBytes.
uint64_t snapshot_entry_bytes(absl::Span<const uint8_t> head);

// Parses one entry.  `disk_size_bytes` is the image's.
// Errors: kDataLoss if it breaks a limit or `bytes` ends within it (the padding
// may be missing).
absl::StatusOr<Snapshot> parse_snapshot(absl::Span<const uint8_t> bytes,
                                        uint64_t disk_size_bytes);

// OK if the snapshot's L1 table can be read, and lies in the file.
// Errors: kDataLoss.
absl::Status check_snapshot_l1(const Snapshot& snapshot, uint64_t cluster_bytes,
                               uint64_t file_length_bytes);

// An entry whose extra data is longer than kMaxSnapshotExtraBytes.
enum class LongExtraData {
  kRefuse,
  // For a repair: what is beyond the limit is left out.
  kCut,
};

// Reads a table entry by entry, in pieces: never holds more than an entry and
// a little.  Beyond the end of the file it finds zeroes.
class SnapshotTableReader {
 public:
  // `file` must outlive this.
  SnapshotTableReader(ByteChannel* file, const Header& header,
                      LongExtraData long_extra = LongExtraData::kRefuse);

  bool at_end() const { return index_ == count_; }
  // The index of the entry that next() reads.
  uint32_t index() const { return index_; }
  // REQUIRES: !at_end().
  // Errors: those of parse_snapshot() and of the file, kDataLoss if the table
  // becomes too long; they name the entry.
  absl::StatusOr<Snapshot> next();
  // next() failed because the table became too long.
  bool is_too_long() const { return too_long_; }
  // Of the entry that next() read or failed at, as the table states it.
  uint64_t extra_bytes() const { return extra_bytes_; }
  // The bytes of the entries that were read, with the padding between them but
  // not behind the last one.
  uint64_t length_bytes() const { return length_bytes_; }

 private:
  // Makes at least `bytes` bytes at `position_` available.
  absl::Status fill(uint64_t bytes);
  // Moves them to the end of `entry`.
  absl::Status take(uint64_t bytes, std::vector<uint8_t>* entry);
  // Counts an entry, whose fixed part was read, as part of the table.
  absl::Status keep(uint64_t kept_bytes, uint64_t cut_bytes);
  absl::StatusOr<Snapshot> read_entry();

  ByteChannel* const file_;
  const uint64_t offset_;
  const uint32_t count_;
  const LongExtraData long_extra_;
  const uint64_t disk_size_bytes_;
  uint32_t index_ = 0;
  // Where in the table the next entry stands.
  uint64_t position_ = 0;
  uint64_t length_bytes_ = 0;
  // The same without what is cut: this has a limit.
  uint64_t kept_bytes_ = 0;
  bool too_long_ = false;
  uint64_t extra_bytes_ = 0;
  // Bytes of the table from buffer_start_ on.
  uint64_t buffer_start_ = 0;
  std::vector<uint8_t> buffer_;
};

// The whole table.
// Errors: also kDataLoss if it ends beyond the end of the file.
absl::StatusOr<std::vector<Snapshot>> read_snapshot_table(ByteChannel* file,
                                                          const Header& header);

// Adds one entry to a table, padded before it; the entries as QEMU writes them.
// Errors: kResourceExhausted if it breaks a limit of an entry.
absl::Status append_snapshot(const Snapshot& snapshot,
                             std::vector<uint8_t>* table);

// The table as QEMU writes it, each entry padded but the last.
// Errors: kResourceExhausted if it breaks a limit.
absl::StatusOr<std::vector<uint8_t>> serialize_snapshot_table(
    absl::Span<const Snapshot> snapshots);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_SNAPSHOT_TABLE_H_

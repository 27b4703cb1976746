// Walks the L2 tables that an L1 table names, as they stand in the file: in
// order, in batches of pieces that are visited in parallel.  A piece is a
// table, or a part of one that is long.
//
// Nothing is kept but the batch, and the L1 table is read in pieces, too.
//
// Thread safety: one thread walks; `visit` runs on several at a time.
#ifndef SPINDLE_FORMATS_QCOW2_TABLE_WALK_H_
#define SPINDLE_FORMATS_QCOW2_TABLE_WALK_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "formats/qcow2/check_context.h"
#include "formats/qcow2/findings.h"

namespace spindle::qcow2 {

struct L1Place {
  uint64_t offset = 0;
  uint64_t entry_count = 0;
};

// A piece of the L2 table that an L1 entry names which is not zero.
struct L2Piece {
  uint64_t l1_index = 0;
  uint64_t l1_entry = 0;
  uint64_t table_offset = 0;  // as the entry states it; may be 0
  uint64_t first_entry = 0;
  uint64_t entry_count = 0;

  bool begins_table() const { return first_entry == 0; }
};

enum class WalkOrder { kParallel, kOneByOne };

// What the visits find is said in the order of the tables.
// Errors: those of CheckContext::next_piece(); those of reading the L1 table,
// which is then counted as one check error.
absl::Status walk_l2_tables(
    CheckContext* context, const L1Place& l1, WalkOrder order,
    absl::FunctionRef<void(const L2Piece& piece, Findings* findings)> visit);

// The entries of a piece as they stand in the file.
class L2Entries {
 public:
  // Beyond the end of the file are zeroes, and nothing is read: there are no
  // entries then.
  absl::Status read(const CheckContext& context, const L2Piece& piece);
  // What follows counts from the first one of the piece.
  uint64_t count() const { return bytes_.size() / entry_bytes_; }
  uint64_t entry(uint64_t index) const;
  // "Extended L2 Entries": the allocation bitmap; 0 elsewhere.
  uint64_t bitmap(uint64_t index) const;
  void set_entry(uint64_t index, uint64_t value);
  // Where they stand in the file.
  uint64_t offset() const { return offset_; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  uint64_t entry_bytes_ = 8;
  uint64_t offset_ = 0;
  std::vector<uint8_t> bytes_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_TABLE_WALK_H_

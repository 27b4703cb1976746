// Walks the L2 tables that an L1 table names, as they stand in the file: in
// order, in batches whose tables are visited in parallel.
//
// Nothing is kept but the batch, and the L1 table is read in pieces.
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

// One L1 entry that is not zero.
struct L2Place {
  uint64_t l1_index = 0;
  uint64_t l1_entry = 0;
  uint64_t offset = 0;  // of the table, as the entry states it; may be 0
};

enum class WalkOrder { kParallel, kOneByOne };

// What the visits find is said in the order of the L1 table.
// Errors: kCancelled; those of reading the L1 table, which is then counted as
// one check error.
absl::Status walk_l2_tables(
    CheckContext* context, const L1Place& l1, WalkOrder order,
    absl::FunctionRef<void(const L2Place& place, Findings* findings)> visit);

// An L2 table as it stands in the file.
class L2TableBytes {
 public:
  // Beyond the end of the file are zeroes, and nothing is read.
  absl::Status read(const CheckContext& context, uint64_t offset);
  uint64_t entry_count() const { return bytes_.size() / entry_bytes_; }
  uint64_t entry(uint64_t index) const;
  // "Extended L2 Entries": the allocation bitmap; 0 elsewhere.
  uint64_t bitmap(uint64_t index) const;
  void set_entry(uint64_t index, uint64_t value);
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  uint64_t entry_bytes_ = 8;
  std::vector<uint8_t> bytes_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_TABLE_WALK_H_

// The COPIED flags of the active L1 table and its L2 tables: set exactly where
// the refcount is one.
#ifndef SPINDLE_FORMATS_QCOW2_COPIED_FLAGS_H_
#define SPINDLE_FORMATS_QCOW2_COPIED_FLAGS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/sector.h"
#include "formats/qcow2/check_context.h"
#include "formats/qcow2/reference_walk.h"
#include "formats/qcow2/stored_refcounts.h"

namespace spindle::qcow2 {

// Where the structures lie that a repair of table entries must not write into:
// in a damaged image a table may stand anywhere.
class MetadataRanges {
 public:
  // Everything but L2 tables.
  // Errors: those of reading the snapshot table.
  static absl::StatusOr<MetadataRanges> collect(const CheckContext& context,
                                                const StoredRefcounts& stored);
  bool overlaps(ByteRange range) const;
  // True if the active L1 table lies by itself.
  bool l1_is_separate() const { return l1_is_separate_; }

 private:
  void add(uint64_t offset, uint64_t length);
  void sort();

  std::vector<ByteRange> ranges_;  // apart from each other, in order
  bool l1_is_separate_ = false;
};

// Compares the flags with `stored`, and puts them right if asked to.
absl::Status check_copied_flags(CheckContext* context,
                                const StoredRefcounts& stored, bool repair);

// Turns into zeroes what a ReferenceWalk set aside; what cannot be changed is
// counted by `walk` after all.
absl::Status zero_entries(CheckContext* context, const StoredRefcounts& stored,
                          const std::vector<EntryToZero>& entries,
                          ReferenceWalk* walk);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_COPIED_FLAGS_H_

// Which host clusters a new image uses, and where: the allocations of an image
// that is being created, replayed in memory in the order in which QEMU makes
// them, so that every table and cluster lands where QEMU puts it.
//
// Refcounts are 0 or 1 while an image is created, so the used clusters are
// kept as runs; refcount blocks are rendered from them at the end.
//
// Thread safety: none; one image is created by one thread.
#ifndef SPINDLE_FORMATS_QCOW2_CREATE_ALLOCATOR_H_
#define SPINDLE_FORMATS_QCOW2_CREATE_ALLOCATOR_H_

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace spindle::qcow2 {

class CreateAllocator {
 public:
  // What stays behind in clusters that a refcount table gave up.
  using RetireTable = std::function<absl::Status(
      uint64_t offset, absl::Span<const uint64_t> table)>;

  // Begins with the three clusters of an empty image in use: header, refcount
  // table and refcount block.
  CreateAllocator(uint32_t cluster_bits, uint32_t refcount_order,
                  RetireTable retire_table);

  // Allocates `count` adjacent clusters, the first that are free, and returns
  // the host offset.
  absl::StatusOr<uint64_t> allocate(uint64_t count);
  // Allocates up to `count` clusters at `offset` and returns how many of them
  // were free.
  absl::StatusOr<uint64_t> allocate_at(uint64_t offset, uint64_t count);
  // Makes refcount blocks and a new refcount table behind the last used
  // cluster, so that `count` clusters behind them need no more; returns where
  // those begin.
  absl::StatusOr<uint64_t> reserve_behind_end(uint64_t count);

  uint64_t refcount_table_offset() const { return table_offset_; }
  // Entries; a whole number of clusters.
  absl::Span<const uint64_t> refcount_table() const { return table_; }
  // The contents of the refcount block `table_index`.
  void render_block(uint64_t table_index, std::vector<uint8_t>* block) const;

 private:
  // Allocation has to start again: it made a refcount block, which may have
  // taken the very clusters that were wanted.
  enum class Outcome { kDone, kAgain };

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits_; }
  bool is_used(uint64_t cluster) const;
  void set_used(uint64_t cluster, uint64_t count);
  void set_free(uint64_t cluster, uint64_t count);
  uint64_t free_run_length(uint64_t cluster, uint64_t at_most) const;

  // Finds `count` adjacent free clusters and returns the first.
  uint64_t find_free(uint64_t count);
  absl::StatusOr<Outcome> take(uint64_t cluster, uint64_t count);
  absl::StatusOr<Outcome> ensure_block(uint64_t cluster);
  // See reserve_behind_end(); `start` is a host cluster behind everything.
  absl::StatusOr<uint64_t> make_refcount_area(uint64_t start,
                                              uint64_t additional, bool exact,
                                              uint64_t new_block_index,
                                              uint64_t new_block_offset);
  uint64_t blocks_for(uint64_t clusters, bool generous) const;
  absl::Status switch_table(uint64_t offset, std::vector<uint64_t> table);

  const uint32_t cluster_bits_;
  const uint32_t refcount_order_;
  const uint64_t block_entry_count_;
  const RetireTable retire_table_;
  // Runs of used clusters, first -> one past the last; disjoint, not adjacent.
  std::map<uint64_t, uint64_t> used_;
  uint64_t next_free_ = 3;  // nothing is free below it
  uint64_t table_offset_;
  std::vector<uint64_t> table_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_CREATE_ALLOCATOR_H_

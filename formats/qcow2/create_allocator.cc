#include "formats/qcow2/create_allocator.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

// Sets the refcount `index` of `block` to 1.
void set_refcount_to_one(uint64_t index, uint32_t refcount_order,
                         std::vector<uint8_t>* block) {
  if (refcount_order < 3) {
    // Below a byte, the first refcount stands in the least significant bits.
    const uint64_t bit = index << refcount_order;
    (*block)[bit / 8] |= static_cast<uint8_t>(1u << (bit % 8));
    return;
  }
  const uint64_t width = uint64_t{1} << (refcount_order - 3);
  (*block)[(index + 1) * width - 1] = 1;  // big-endian: the last byte
}

}  // namespace

CreateAllocator::CreateAllocator(uint32_t cluster_bits, uint32_t refcount_order,
                                 RetireTable retire_table)
    : cluster_bits_(cluster_bits),
      refcount_order_(refcount_order),
      block_entry_count_((cluster_size() * 8) >> refcount_order),
      retire_table_(std::move(retire_table)),
      table_offset_(cluster_size()),
      table_(cluster_size() / kRefcountTableEntryBytes) {
  table_[0] = 2 * cluster_size();
  set_used(0, 3);
}

bool CreateAllocator::is_used(uint64_t cluster) const {
  return free_run_length(cluster, 1) == 0;
}

void CreateAllocator::set_used(uint64_t cluster, uint64_t count) {
  if (count == 0) return;
  uint64_t first = cluster;
  uint64_t end = cluster + count;
  auto next = used_.upper_bound(first);
  if (next != used_.begin()) {
    const auto previous = std::prev(next);
    if (previous->second >= first) {
      first = previous->first;
      end = std::max(end, previous->second);
      used_.erase(previous);
    }
  }
  while (next != used_.end() && next->first <= end) {
    end = std::max(end, next->second);
    next = used_.erase(next);
  }
  used_[first] = end;
}

// REQUIRES: the clusters are used.
void CreateAllocator::set_free(uint64_t cluster, uint64_t count) {
  if (count == 0) return;
  const auto run = std::prev(used_.upper_bound(cluster));
  const uint64_t first = run->first;
  const uint64_t end = run->second;
  used_.erase(run);
  if (first < cluster) used_[first] = cluster;
  if (cluster + count < end) used_[cluster + count] = end;
  next_free_ = std::min(next_free_, cluster);
}

uint64_t CreateAllocator::free_run_length(uint64_t cluster,
                                          uint64_t at_most) const {
  const auto next = used_.upper_bound(cluster);
  if (next != used_.begin() && std::prev(next)->second > cluster) return 0;
  return next == used_.end() ? at_most
                             : std::min(at_most, next->first - cluster);
}

uint64_t CreateAllocator::find_free(uint64_t count) {
  for (;;) {
    const uint64_t start = next_free_;
    const uint64_t length = free_run_length(start, count);
    if (length == count) {
      next_free_ = start + count;
      return start;
    }
    // Behind the free clusters that were too few, and behind the used run that
    // follows them.
    next_free_ = std::prev(used_.upper_bound(start + length))->second;
  }
}

// Gives the clusters a refcount of 1, with refcount blocks for them.  On
// kAgain nothing is taken, but for the new refcount block.
absl::StatusOr<CreateAllocator::Outcome> CreateAllocator::take(uint64_t cluster,
                                                               uint64_t count) {
  const uint64_t end = cluster + count;
  for (uint64_t at = cluster; at < end;) {
    const absl::StatusOr<Outcome> outcome = ensure_block(at);
    if (!outcome.ok()) return outcome.status();
    if (*outcome == Outcome::kAgain) {
      set_free(cluster, at - cluster);
      next_free_ = std::min(next_free_, cluster);
      return Outcome::kAgain;
    }
    const uint64_t block_end =
        (at / block_entry_count_ + 1) * block_entry_count_;
    const uint64_t taken = std::min(end, block_end) - at;
    set_used(at, taken);
    at += taken;
  }
  return Outcome::kDone;
}

// Makes sure that a refcount block describes `cluster`; kAgain if it had to
// make one.
absl::StatusOr<CreateAllocator::Outcome> CreateAllocator::ensure_block(
    uint64_t cluster) {
  const uint64_t table_index = cluster / block_entry_count_;
  if (table_index < table_.size() && table_[table_index] != 0)
    return Outcome::kDone;

  const uint64_t block = find_free(1);
  if (block / block_entry_count_ == table_index) {
    set_used(block, 1);  // the block describes itself
  } else {
    const absl::StatusOr<Outcome> outcome = take(block, 1);
    if (!outcome.ok() || *outcome == Outcome::kAgain) return outcome;
  }
  if (table_index < table_.size()) {
    table_[table_index] = block << cluster_bits_;
    return Outcome::kAgain;
  }
  // The table is full.  A new one goes behind everything, with refcount blocks
  // that describe it and themselves.
  const uint64_t blocks_in_use =
      divide_round_up(std::max(cluster + 1, block), block_entry_count_);
  const absl::StatusOr<uint64_t> end =
      make_refcount_area(blocks_in_use * block_entry_count_, 0, false,
                         table_index, block << cluster_bits_);
  if (!end.ok()) return end.status();
  return Outcome::kAgain;
}

// How many refcount blocks describe `clusters` clusters, those blocks and their
// table; `generous` makes room for a table half as large again.
uint64_t CreateAllocator::blocks_for(uint64_t clusters, bool generous) const {
  const uint64_t entries_per_table_cluster =
      cluster_size() / kRefcountTableEntryBytes;
  uint64_t blocks = 0;
  uint64_t table_clusters = 0;
  uint64_t last = 0;
  for (uint64_t total = 0;;) {
    last = total;
    blocks =
        divide_round_up(clusters + table_clusters + blocks, block_entry_count_);
    table_clusters = divide_round_up(blocks, entries_per_table_cluster);
    total = clusters + blocks + table_clusters;
    if (total != last) continue;
    if (!generous) return blocks;
    generous = false;
    clusters += divide_round_up(table_clusters, 2);
    total = 0;
  }
}

absl::StatusOr<uint64_t> CreateAllocator::make_refcount_area(
    uint64_t start, uint64_t additional, bool exact, uint64_t new_block_index,
    uint64_t new_block_offset) {
  const uint64_t block_count = blocks_for(start + additional, !exact);
  const uint64_t wanted =
      exact ? block_count : block_count + divide_round_up(block_count, 2);
  const uint64_t table_bytes =
      align_up(wanted * kRefcountTableEntryBytes, cluster_size());
  if (table_bytes > kMaxRefcountTableBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("qcow2: the refcount table would have ", table_bytes,
                     " bytes; the limit is ", kMaxRefcountTableBytes,
                     " (a larger cluster size or smaller refcounts help)"));
  }
  std::vector<uint64_t> table = table_;
  while (!table.empty() && table.back() == 0) table.pop_back();
  table.resize(table_bytes / kRefcountTableEntryBytes);
  if (new_block_offset != 0) table[new_block_index] = new_block_offset;

  uint64_t next = start;
  for (uint64_t i = start / block_entry_count_; i < block_count; ++i) {
    if (table[i] == 0) table[i] = next++ << cluster_bits_;
  }
  const uint64_t table_offset = next << cluster_bits_;
  const uint64_t end = next + (table_bytes >> cluster_bits_);
  set_used(start, end - start);
  if (absl::Status status = switch_table(table_offset, std::move(table));
      !status.ok()) {
    return status;
  }
  return end;
}

absl::Status CreateAllocator::switch_table(uint64_t offset,
                                           std::vector<uint64_t> table) {
  absl::Status status = retire_table_(table_offset_, table_);
  if (!status.ok()) return status;
  const uint64_t old_clusters =
      (table_.size() * kRefcountTableEntryBytes) >> cluster_bits_;
  const uint64_t old_first = table_offset_ >> cluster_bits_;
  table_offset_ = offset;
  table_ = std::move(table);
  set_free(old_first, old_clusters);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> CreateAllocator::allocate(uint64_t count) {
  for (;;) {
    const uint64_t first = find_free(count);
    const absl::StatusOr<Outcome> outcome = take(first, count);
    if (!outcome.ok()) return outcome.status();
    if (*outcome == Outcome::kDone) return first << cluster_bits_;
  }
}

absl::StatusOr<uint64_t> CreateAllocator::allocate_at(uint64_t offset,
                                                      uint64_t count) {
  const uint64_t first = offset >> cluster_bits_;
  for (;;) {
    const uint64_t length = free_run_length(first, count);
    const absl::StatusOr<Outcome> outcome = take(first, length);
    if (!outcome.ok()) return outcome.status();
    if (*outcome == Outcome::kDone) return length;
  }
}

absl::StatusOr<uint64_t> CreateAllocator::reserve_behind_end(uint64_t count) {
  const absl::StatusOr<uint64_t> end =
      make_refcount_area(used_.rbegin()->second, count, true, 0, 0);
  if (!end.ok()) return end.status();
  return *end << cluster_bits_;
}

void CreateAllocator::render_block(uint64_t table_index,
                                   std::vector<uint8_t>* block) const {
  block->assign(cluster_size(), 0);
  const uint64_t first = table_index * block_entry_count_;
  const uint64_t end = first + block_entry_count_;
  auto run = used_.upper_bound(first);
  if (run != used_.begin()) --run;
  for (; run != used_.end() && run->first < end; ++run) {
    const uint64_t run_end = std::min(run->second, end);
    for (uint64_t cluster = std::max(run->first, first); cluster < run_end;
         ++cluster) {
      set_refcount_to_one(cluster - first, refcount_order_, block);
    }
  }
}

}  // namespace spindle::qcow2

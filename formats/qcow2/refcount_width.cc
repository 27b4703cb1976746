#include "formats/qcow2/refcount_width.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/header_file.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {
namespace {

class WidthChange {
 public:
  WidthChange(Image* image, const Header& header, uint32_t refcount_order,
              const AmendProgress& progress)
      : image_(*image),
        geometry_(image->geometry()),
        header_(header),
        next_(header),
        progress_(progress) {
    next_.refcount_order = refcount_order;
  }

  absl::Status check() {
    absl::Status status = load_old_table();
    return status.ok() ? find_needed_blocks().status() : status;
  }
  absl::StatusOr<std::vector<HostClusters>> run();

 private:
  uint64_t per_old_block() const {
    return header_.refcount_block_entry_count();
  }
  uint64_t per_new_block() const { return next_.refcount_block_entry_count(); }

  // Makes the file say what is counted, and reads the table.
  absl::Status load_old_table();
  // The block of the index, in block_; false if there is none.
  absl::StatusOr<bool> load_old_block(uint64_t index);
  // Which new blocks have something to say.
  absl::StatusOr<std::vector<bool>> find_needed_blocks();
  absl::Status check_fits(uint64_t refcount, uint64_t cluster) const;
  // Clusters for the new structures; they count themselves.
  absl::Status allocate();
  absl::StatusOr<bool> allocate_blocks(const std::vector<bool>& needed);
  absl::Status allocate_table(uint64_t block_count);
  absl::Status write_blocks();
  absl::Status write_block(uint64_t index);
  absl::Status write_table();
  absl::Status switch_to_new();
  void give_up();
  std::vector<HostClusters> old_clusters() const;

  Image& image_;
  const Geometry& geometry_;
  const Header header_;
  Header next_;
  const AmendProgress& progress_;

  std::vector<uint64_t> old_table_;  // host offsets of blocks; 0: none
  std::vector<uint8_t> block_;
  uint64_t block_index_ = UINT64_MAX;
  std::vector<uint64_t> new_table_;
  HostClusters new_table_place_;
};

absl::Status WidthChange::load_old_table() {
  absl::Status status = image_.rounds().settle();
  if (!status.ok()) return status;
  // It may have moved meanwhile.
  const absl::StatusOr<Header> now = read_header(&image_.file());
  if (!now.ok()) return now.status();
  next_.refcount_table_offset = now->refcount_table_offset;
  next_.refcount_table_clusters = now->refcount_table_clusters;
  std::vector<uint8_t> bytes(now->refcount_table_bytes());
  status = image_.file().read(Purpose::kReftableLoad, bytes.data(),
                              bytes.size(), now->refcount_table_offset);
  if (!status.ok()) return status;
  old_table_.resize(bytes.size() / kRefcountTableEntryBytes);
  for (size_t i = 0; i < old_table_.size(); ++i) {
    old_table_[i] = load_big64(&bytes[i * kRefcountTableEntryBytes]) &
                    kRefcountTableOffsetMask;
  }
  block_index_ = UINT64_MAX;
  return absl::OkStatus();
}

absl::StatusOr<bool> WidthChange::load_old_block(uint64_t index) {
  if (index >= old_table_.size() || old_table_[index] == 0) return false;
  if (index == block_index_) return true;
  block_.resize(geometry_.cluster_bytes());
  block_index_ = UINT64_MAX;
  absl::Status status = image_.file().read(
      Purpose::kRefblockLoad, block_.data(), block_.size(), old_table_[index]);
  if (!status.ok()) return status;
  block_index_ = index;
  return true;
}

absl::Status WidthChange::check_fits(uint64_t refcount,
                                     uint64_t cluster) const {
  const uint32_t bits = next_.refcount_bits();
  if (bits == 64 || refcount >> bits == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "Cannot decrease refcount entry width to %d bits: Cluster at offset %#x "
      "has a refcount of %d",
      bits, geometry_.cluster_offset(cluster), refcount));
}

absl::StatusOr<std::vector<bool>> WidthChange::find_needed_blocks() {
  std::vector<bool> needed;
  for (uint64_t i = 0; i < old_table_.size(); ++i) {
    absl::Status status = progress_.interrupted();
    if (!status.ok()) return status;
    const absl::StatusOr<bool> present = load_old_block(i);
    if (!present.ok()) return present.status();
    if (!*present) continue;
    for (uint64_t j = 0; j < per_old_block(); ++j) {
      const uint64_t refcount =
          load_refcount(block_.data(), header_.refcount_order, j);
      if (refcount == 0) continue;
      const uint64_t cluster = i * per_old_block() + j;
      status = check_fits(refcount, cluster);
      if (!status.ok()) return status;
      const uint64_t block = cluster / per_new_block();
      if (needed.size() <= block) needed.resize(block + 1);
      needed[block] = true;
    }
    progress_.say(i, 2 * old_table_.size());
  }
  return needed;
}

absl::StatusOr<bool> WidthChange::allocate_blocks(
    const std::vector<bool>& needed) {
  bool allocated = false;
  new_table_.resize(std::max(new_table_.size(), needed.size()));
  for (size_t i = 0; i < needed.size(); ++i) {
    if (!needed[i] || new_table_[i] != 0) continue;
    const absl::StatusOr<Allocator::Allocation> block =
        image_.allocator().allocate(1);
    if (!block.ok()) return block.status();
    image_.allocator().note_published(block->clusters);
    new_table_[i] = geometry_.cluster_offset(block->clusters.first);
    allocated = true;
  }
  return allocated;
}

absl::Status WidthChange::allocate_table(uint64_t block_count) {
  const uint64_t clusters =
      geometry_.clusters_for(block_count * kRefcountTableEntryBytes);
  if (geometry_.cluster_offset(clusters) > kMaxRefcountTableBytes) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "This operation would make the refcount table grow beyond the maximum "
        "size supported, %d bytes, aborting",
        kMaxRefcountTableBytes));
  }
  const HostClusters before = std::exchange(new_table_place_, {});
  if (before.count != 0) image_.allocator().free_unpublished(before);
  const absl::StatusOr<Allocator::Allocation> table =
      image_.allocator().allocate(clusters);
  if (!table.ok()) return table.status();
  image_.allocator().note_published(table->clusters);
  new_table_place_ = table->clusters;
  return absl::OkStatus();
}

absl::Status WidthChange::allocate() {
  while (true) {
    absl::Status status = load_old_table();
    if (!status.ok()) return status;
    const absl::StatusOr<std::vector<bool>> needed = find_needed_blocks();
    if (!needed.ok()) return needed.status();
    const absl::StatusOr<bool> allocated = allocate_blocks(*needed);
    if (!allocated.ok()) return allocated.status();
    if (!*allocated) return absl::OkStatus();
    status = allocate_table(needed->size());
    if (!status.ok()) return status;
  }
}

absl::Status WidthChange::write_block(uint64_t index) {
  std::vector<uint8_t> block(geometry_.cluster_bytes());
  const uint64_t first = index * per_new_block();
  for (uint64_t i = 0; i < per_new_block();) {
    const uint64_t cluster = first + i;
    const uint64_t into_old = cluster % per_old_block();
    const uint64_t count =
        std::min(per_new_block() - i, per_old_block() - into_old);
    const absl::StatusOr<bool> present =
        load_old_block(cluster / per_old_block());
    if (!present.ok()) return present.status();
    for (uint64_t j = 0; *present && j < count; ++j) {
      store_refcount(
          block.data(), next_.refcount_order, i + j,
          load_refcount(block_.data(), header_.refcount_order, into_old + j));
    }
    i += count;
  }
  return image_.file().write(Purpose::kRefblockAlloc, block.data(),
                             block.size(), new_table_[index]);
}

absl::Status WidthChange::write_blocks() {
  for (uint64_t i = 0; i < new_table_.size(); ++i) {
    absl::Status status = progress_.interrupted();
    if (status.ok() && new_table_[i] != 0) status = write_block(i);
    if (!status.ok()) return status;
    progress_.say(new_table_.size() + i, 2 * new_table_.size());
  }
  return absl::OkStatus();
}

absl::Status WidthChange::write_table() {
  std::vector<uint8_t> bytes(geometry_.cluster_offset(new_table_place_.count));
  for (size_t i = 0; i < new_table_.size(); ++i)
    store_big64(&bytes[i * kRefcountTableEntryBytes], new_table_[i]);
  return image_.file().write(Purpose::kReftableGrow, bytes.data(), bytes.size(),
                             geometry_.cluster_offset(new_table_place_.first));
}

absl::Status WidthChange::switch_to_new() {
  Header old = header_;
  old.refcount_table_offset = next_.refcount_table_offset;
  old.refcount_table_clusters = next_.refcount_table_clusters;
  next_.refcount_table_offset =
      geometry_.cluster_offset(new_table_place_.first);
  next_.refcount_table_clusters = static_cast<uint32_t>(new_table_place_.count);
  order_extensions(&next_);
  return replace_header(&image_.file(), &image_.corruption(), old, next_);
}

std::vector<HostClusters> WidthChange::old_clusters() const {
  std::vector<HostClusters> clusters;
  for (const uint64_t block : old_table_) {
    if (block != 0) clusters.push_back({geometry_.cluster_index(block), 1});
  }
  return clusters;
}

void WidthChange::give_up() {
  // Where the header may name them, they stay counted.
  if (image_.corruption().is_set()) return;
  for (const uint64_t block : new_table_) {
    if (block != 0)
      image_.allocator().free_unpublished({geometry_.cluster_index(block), 1});
  }
  if (new_table_place_.count != 0)
    image_.allocator().free_unpublished(new_table_place_);
  image_.rounds().settle().IgnoreError();  // the first error counts
}

absl::StatusOr<std::vector<HostClusters>> WidthChange::run() {
  absl::Status status = allocate();
  if (status.ok()) status = write_blocks();
  if (status.ok()) status = write_table();
  if (status.ok()) status = image_.file().flush();
  std::vector<HostClusters> old = old_clusters();
  old.push_back({geometry_.cluster_index(next_.refcount_table_offset),
                 next_.refcount_table_clusters});
  if (status.ok()) status = switch_to_new();
  if (status.ok()) return old;
  give_up();
  return status;
}

}  // namespace

absl::Status check_refcounts_fit(Image* image, const Header& header,
                                 uint32_t refcount_order,
                                 const AmendProgress& progress) {
  return WidthChange(image, header, refcount_order, progress).check();
}

absl::StatusOr<std::vector<HostClusters>> change_refcount_width(
    Image* image, const Header& header, uint32_t refcount_order,
    const AmendProgress& progress) {
  return WidthChange(image, header, refcount_order, progress).run();
}

}  // namespace spindle::qcow2

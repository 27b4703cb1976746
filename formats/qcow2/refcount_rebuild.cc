#include "formats/qcow2/refcount_rebuild.h"

#include <algorithm>
#include <array>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {
namespace {

// Where the new structures stand: blocks, then the table.
struct Plan {
  uint64_t first_cluster = 0;
  uint64_t block_count = 0;
  uint64_t table_clusters = 0;
  // Which blocks there are.
  std::vector<bool> needed;

  uint64_t table_cluster() const { return first_cluster + block_count; }
  uint64_t end() const { return table_cluster() + table_clusters; }
};

class Rebuild {
 public:
  Rebuild(CheckContext* context, const ReferenceCounter& counter,
          uint64_t clusters)
      : context_(context),
        counter_(counter),
        clusters_(clusters),
        per_block_(context->geometry.refblock_entries()) {}

  absl::Status run();

 private:
  uint64_t references(uint64_t cluster) const {
    if (cluster < clusters_) return counter_.get(cluster);
    return cluster >= plan_.first_cluster && cluster < plan_.end() ? 1 : 0;
  }
  absl::Status make_plan();
  absl::Status write_blocks();
  absl::Status write_table();
  absl::Status switch_header();

  CheckContext* const context_;
  const ReferenceCounter& counter_;
  const uint64_t clusters_;
  const uint64_t per_block_;
  Plan plan_;
};

absl::Status Rebuild::make_plan() {
  const Geometry& geometry = context_->geometry;
  plan_.first_cluster = std::max(
      clusters_, geometry.clusters_for(context_->file->length_bytes()));
  for (uint64_t cluster = 0; cluster < clusters_; ++cluster) {
    if (counter_.get(cluster) == 0) continue;
    const uint64_t index = cluster / per_block_;
    if (plan_.needed.size() <= index) plan_.needed.resize(index + 1);
    plan_.needed[index] = true;
    cluster = (index + 1) * per_block_ - 1;  // the block's others add nothing
  }
  // The structures count themselves: until nothing more is needed.
  while (true) {
    const uint64_t end = plan_.end();
    const uint64_t index_end = divide_round_up(end, per_block_);
    plan_.needed.resize(std::max<uint64_t>(plan_.needed.size(), index_end));
    for (uint64_t i = plan_.first_cluster / per_block_; i < index_end; ++i)
      plan_.needed[i] = true;
    plan_.block_count = static_cast<uint64_t>(
        std::count(plan_.needed.begin(), plan_.needed.end(), true));
    const uint64_t table_bytes = plan_.needed.size() * kRefcountTableEntryBytes;
    plan_.table_clusters = geometry.clusters_for(table_bytes);
    if (geometry.cluster_offset(plan_.table_clusters) >
        kMaxRefcountTableBytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "qcow2: a refcount table for ", clusters_, " clusters would have ",
          table_bytes, " bytes: the limit is ", kMaxRefcountTableBytes));
    }
    if (plan_.end() == end) return absl::OkStatus();
  }
}

absl::Status Rebuild::write_blocks() {
  const Geometry& geometry = context_->geometry;
  std::vector<uint8_t> block(geometry.cluster_bytes());
  uint64_t at = plan_.first_cluster;
  for (uint64_t index = 0; index < plan_.needed.size(); ++index) {
    if (!plan_.needed[index]) continue;
    absl::Status status = context_->interrupted();
    if (!status.ok()) return status;
    std::fill(block.begin(), block.end(), uint8_t{0});
    const uint64_t first = index * per_block_;
    const uint64_t count = std::min(per_block_, plan_.end() - first);
    for (uint64_t i = 0; i < count; ++i) {
      store_refcount(block.data(), geometry.refcount_order, i,
                     references(first + i));
    }
    status = context_->file->write(Purpose::kRefblockAlloc, block.data(),
                                   block.size(), geometry.cluster_offset(at));
    if (!status.ok()) return status;
    ++at;
  }
  return absl::OkStatus();
}

absl::Status Rebuild::write_table() {
  const Geometry& geometry = context_->geometry;
  std::vector<uint8_t> table(geometry.cluster_offset(plan_.table_clusters));
  uint64_t at = plan_.first_cluster;
  for (uint64_t index = 0; index < plan_.needed.size(); ++index) {
    if (!plan_.needed[index]) continue;
    store_big64(&table[index * kRefcountTableEntryBytes],
                geometry.cluster_offset(at++));
  }
  return context_->file->write(Purpose::kReftableGrow, table.data(),
                               table.size(),
                               geometry.cluster_offset(plan_.table_cluster()));
}

absl::Status Rebuild::switch_header() {
  const uint64_t offset =
      context_->geometry.cluster_offset(plan_.table_cluster());
  const auto table_clusters = static_cast<uint32_t>(plan_.table_clusters);
  // Both fields with one write, within a sector.
  static_assert(kRefcountTableClustersOffset ==
                kRefcountTableOffsetOffset + sizeof(uint64_t));
  std::array<uint8_t, 12> fields{};
  store_big64(fields.data(), offset);
  store_big32(fields.data() + 8, table_clusters);
  absl::Status status =
      context_->file->write(Purpose::kHeaderUpdate, fields.data(),
                            fields.size(), kRefcountTableOffsetOffset);
  if (status.ok()) status = context_->file->flush();
  if (!status.ok()) return status;
  context_->header.refcount_table_offset = offset;
  context_->header.refcount_table_clusters = table_clusters;
  return absl::OkStatus();
}

absl::Status Rebuild::run() {
  absl::Status status = make_plan();
  if (status.ok()) status = write_blocks();
  if (status.ok()) status = write_table();
  if (status.ok()) status = context_->file->flush();
  return status.ok() ? switch_header() : status;
}

}  // namespace

absl::Status rebuild_refcounts(CheckContext* context,
                               const ReferenceCounter& counter,
                               uint64_t clusters) {
  return Rebuild(context, counter, clusters).run();
}

}  // namespace spindle::qcow2

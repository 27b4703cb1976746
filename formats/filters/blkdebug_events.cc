#include "formats/filters/blkdebug_events.h"

#include <algorithm>
#include <array>

#include "absl/base/macros.h"

namespace spindle {
namespace {

constexpr absl::string_view kQemuNames[] = {
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
    "none",
};

// QEMU's, and the purposes that QEMU does not have.
const std::vector<absl::string_view>& names() {
  static const auto* const all = [] {
    auto* list = new std::vector<absl::string_view>(std::begin(kQemuNames),
                                                    std::end(kQemuNames));
    for (int i = 0; i < kPurposeCount; ++i) {
      const absl::string_view name = purpose_name(static_cast<Purpose>(i));
      if (std::find(list->begin(), list->end(), name) == list->end())
        list->push_back(name);
    }
    return list;
  }();
  return *all;
}

std::vector<BlkdebugEvent> raised_by(Purpose purpose) {
  std::vector<BlkdebugEvent> events = {blkdebug_event(purpose_name(purpose))};
  switch (purpose) {
    case Purpose::kClusterAlloc:
      events.push_back(blkdebug_event("write_aio"));
      break;
    case Purpose::kRefblockAlloc:
      events.push_back(blkdebug_event("refblock_alloc_write"));
      break;
    case Purpose::kRefblockUpdate:
      events.push_back(blkdebug_event("refblock_update_part"));
      break;
    case Purpose::kReftableGrow:
      events.push_back(blkdebug_event("refblock_alloc_write_table"));
      break;
    case Purpose::kFlushToDisk:
      events.insert(events.begin(), blkdebug_event("flush_to_os"));
      break;
    default:
      break;
  }
  return events;
}

}  // namespace

std::optional<BlkdebugEvent> find_blkdebug_event(absl::string_view name) {
  const auto found = std::find(names().begin(), names().end(), name);
  if (found == names().end()) return std::nullopt;
  return static_cast<BlkdebugEvent>(found - names().begin());
}

BlkdebugEvent blkdebug_event(absl::string_view name) {
  const std::optional<BlkdebugEvent> event = find_blkdebug_event(name);
  ABSL_ASSERT(event.has_value());
  return event.value_or(BlkdebugEvent{});
}

absl::string_view blkdebug_event_name(BlkdebugEvent event) {
  return names()[static_cast<size_t>(event)];
}

int blkdebug_event_count() { return static_cast<int>(names().size()); }

const std::vector<BlkdebugEvent>& blkdebug_events_of(Purpose purpose) {
  static const auto* const table = [] {
    auto* rows = new std::array<std::vector<BlkdebugEvent>, kPurposeCount>;
    for (int i = 0; i < kPurposeCount; ++i) {
      (*rows)[static_cast<size_t>(i)] = raised_by(static_cast<Purpose>(i));
    }
    return rows;
  }();
  return (*table)[static_cast<size_t>(purpose)];
}

}  // namespace spindle

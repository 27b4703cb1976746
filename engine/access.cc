#include "engine/access.h"

namespace spindle {

absl::string_view purpose_name(Purpose purpose) {
  // Without a default: the compiler names the one that is missing.
  switch (purpose) {
    case Purpose::kReadAio:
      return "read_aio";
    case Purpose::kWriteAio:
      return "write_aio";
    case Purpose::kClusterAlloc:
      return "cluster_alloc";
    case Purpose::kCowRead:
      return "cow_read";
    case Purpose::kCowWrite:
      return "cow_write";
    case Purpose::kCorWrite:
      return "cor_write";
    case Purpose::kReadBackingAio:
      return "read_backing_aio";
    case Purpose::kReadCompressed:
      return "read_compressed";
    case Purpose::kWriteCompressed:
      return "write_compressed";
    case Purpose::kL1Load:
      return "l1_load";
    case Purpose::kL1Update:
      return "l1_update";
    case Purpose::kL2Load:
      return "l2_load";
    case Purpose::kL2Update:
      return "l2_update";
    case Purpose::kL2AllocCowRead:
      return "l2_alloc_cow_read";
    case Purpose::kL2AllocWrite:
      return "l2_alloc_write";
    case Purpose::kSnapshotUpdate:
      return "snapshot_update";
    case Purpose::kBitmapLoad:
      return "bitmap_load";
    case Purpose::kBitmapUpdate:
      return "bitmap_update";
    case Purpose::kReftableLoad:
      return "reftable_load";
    case Purpose::kReftableGrow:
      return "reftable_grow";
    case Purpose::kReftableUpdate:
      return "reftable_update";
    case Purpose::kRefblockLoad:
      return "refblock_load";
    case Purpose::kRefblockUpdate:
      return "refblock_update";
    case Purpose::kRefblockAlloc:
      return "refblock_alloc";
    case Purpose::kRefblockAllocHookup:
      return "refblock_alloc_hookup";
    case Purpose::kHeaderLoad:
      return "header_load";
    case Purpose::kHeaderUpdate:
      return "header_update";
    case Purpose::kClusterFree:
      return "cluster_free";
    case Purpose::kPwritevZero:
      return "pwritev_zero";
    case Purpose::kPwritevRmwHead:
      return "pwritev_rmw_head";
    case Purpose::kPwritevRmwAfterHead:
      return "pwritev_rmw_after_head";
    case Purpose::kPwritevRmwTail:
      return "pwritev_rmw_tail";
    case Purpose::kPwritevRmwAfterTail:
      return "pwritev_rmw_after_tail";
    case Purpose::kFlushToDisk:
      return "flush_to_disk";
    case Purpose::kSetLength:
      return "set_length";
    case Purpose::kProbe:
      return "probe";
    case Purpose::kBlockStatus:
      return "block_status";
  }
  return "unknown";
}

}  // namespace spindle

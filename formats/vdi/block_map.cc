#include "formats/vdi/block_map.h"

#include <algorithm>
#include <utility>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/sector.h"
#include "formats/vdi/layout.h"

namespace spindle::vdi {
namespace {

constexpr uint32_t kEntriesPerSector = kSectorSizeBytes / kMapEntryBytes;

}  // namespace

BlockMap::BlockMap(std::vector<uint32_t> entries)
    : entries_(std::move(entries)) {}

std::optional<uint32_t> BlockMap::find(uint32_t index) const {
  ABSL_ASSERT(index < entries_.size());
  if (!is_stored(entries_[index])) return std::nullopt;
  return entries_[index];
}

absl::Status BlockMap::prepare_for_changes() {
  std::vector<bool> taken(entries_.size());
  for (size_t index = 0; index < entries_.size(); ++index) {
    const uint32_t block = entries_[index];
    if (!is_stored(block)) continue;
    if (block >= taken.size()) {
      return absl::DataLossError(
          absl::StrCat("vdi: entry ", index, " of the block map names block ",
                       block, " of the file; the limit is ", taken.size(),
                       ": the image can be opened for reading only"));
    }
    if (taken[block]) {
      return absl::DataLossError(absl::StrCat(
          "vdi: entry ", index, " of the block map names block ", block,
          " of the file, as another entry does: the image can be opened for "
          "reading only"));
    }
    taken[block] = true;
    taken_end_ = std::max(taken_end_, block + 1);
  }
  taken_ = std::move(taken);
  return absl::OkStatus();
}

std::optional<uint32_t> BlockMap::take_free() {
  while (lowest_free_ < taken_.size() && taken_[lowest_free_]) ++lowest_free_;
  if (lowest_free_ == taken_.size()) return std::nullopt;
  taken_[lowest_free_] = true;
  taken_end_ = std::max(taken_end_, lowest_free_ + 1);
  return lowest_free_;
}

void BlockMap::give_back(uint32_t block) {
  ABSL_ASSERT(taken_[block]);
  taken_[block] = false;
  lowest_free_ = std::min(lowest_free_, block);
  while (taken_end_ > 0 && !taken_[taken_end_ - 1]) --taken_end_;
}

void BlockMap::set(uint32_t index, uint32_t block) {
  ABSL_ASSERT(taken_[block] && !is_stored(entries_[index]));
  entries_[index] = block;
  dirty_sectors_.insert(index / kEntriesPerSector);
}

BlockMap::Changes BlockMap::take_changes() {
  Changes changes;
  changes.allocated_count = taken_end_;
  for (const uint64_t sector : dirty_sectors_) {
    const uint64_t offset = sector * kSectorSizeBytes;
    if (changes.runs.empty() ||
        changes.runs.back().offset + changes.runs.back().bytes.size() != offset)
      changes.runs.push_back({offset, {}});
    std::string& bytes = changes.runs.back().bytes;
    const uint64_t first = sector * kEntriesPerSector;
    const uint64_t count =
        std::min<uint64_t>(kEntriesPerSector, entries_.size() - first);
    bytes.resize(bytes.size() + count * kMapEntryBytes);
    char* to = bytes.data() + bytes.size() - count * kMapEntryBytes;
    for (uint64_t i = 0; i < count; ++i)
      store_little32(to + i * kMapEntryBytes, entries_[first + i]);
  }
  dirty_sectors_.clear();
  return changes;
}

void BlockMap::put_back(const Changes& changes) {
  for (const Changes::Run& run : changes.runs) {
    for (uint64_t at = 0; at < run.bytes.size(); at += kSectorSizeBytes)
      dirty_sectors_.insert((run.offset + at) / kSectorSizeBytes);
  }
}

}  // namespace spindle::vdi

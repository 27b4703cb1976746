#include "formats/qcow2/l1_table.h"

#include <algorithm>
#include <utility>

#include "engine/byte_order.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

// Changed entries that stand this near to each other are written together.
constexpr uint64_t kEntriesPerWrite = 64;  // 512 bytes

}  // namespace

L1Table::L1Table(HostOffset host, uint64_t entry_count)
    : host_(host),
      entry_count_(entry_count),
      entries_(std::make_unique<std::atomic<uint64_t>[]>(entry_count)) {}

absl::Status L1Table::load(ByteChannel* file) {
  if (entry_count_ == 0) return absl::OkStatus();
  std::vector<uint8_t> bytes(entry_count_ * kL1EntryBytes);
  absl::Status status =
      file->read(Purpose::kL1Load, bytes.data(), bytes.size(), host_.bytes);
  if (!status.ok()) return status;
  for (uint64_t i = 0; i < entry_count_; ++i) {
    entries_[i].store(load_big64(&bytes[i * kL1EntryBytes]),
                      std::memory_order_relaxed);
  }
  return absl::OkStatus();
}

HostOffset L1Table::l2_table(uint64_t index) const {
  return HostOffset{entries_[index].load(std::memory_order_acquire) &
                    kL1OffsetMask};
}

bool L1Table::is_own(uint64_t index) const {
  const uint64_t entry = raw_entry(index);
  return (entry & kEntryCopied) != 0 && (entry & kL1OffsetMask) != 0;
}

void L1Table::set_own(uint64_t index, bool own) {
  const uint64_t before = raw_entry(index);
  const uint64_t after = own ? before | kEntryCopied : before & ~kEntryCopied;
  if (after == before) return;
  entries_[index].store(after, std::memory_order_release);
  MetadataLock lock(&mutex_);
  dirty_.insert(index);
}

void L1Table::replace(const std::vector<uint64_t>& raw_entries) {
  for (uint64_t i = 0; i < entry_count_; ++i) {
    entries_[i].store(i < raw_entries.size() ? raw_entries[i] : 0,
                      std::memory_order_release);
  }
}

void L1Table::clear_from(uint64_t first) {
  for (uint64_t i = first; i < entry_count_; ++i)
    entries_[i].store(0, std::memory_order_release);
}

void L1Table::grow(HostOffset host, uint64_t entry_count) {
  auto entries = std::make_unique<std::atomic<uint64_t>[]>(entry_count);
  for (uint64_t i = 0; i < entry_count_; ++i)
    entries[i].store(raw_entry(i), std::memory_order_relaxed);
  entries_ = std::move(entries);
  entry_count_ = entry_count;
  host_ = host;
}

bool L1Table::begin_create(uint64_t index) {
  MetadataLock lock(&mutex_);
  while (true) {
    if (is_own(index)) return false;
    if (std::find(creating_.begin(), creating_.end(), index) == creating_.end())
      break;
    mutex_.wait(&created_);
  }
  creating_.push_back(index);
  return true;
}

void L1Table::end_create(uint64_t index, HostOffset l2_table) {
  MetadataLock lock(&mutex_);
  std::erase(creating_, index);
  if (l2_table.bytes != 0) {
    entries_[index].store(l2_table.bytes | kEntryCopied,
                          std::memory_order_release);
    dirty_.insert(index);
  }
  created_.SignalAll();
}

std::vector<L1Table::Piece> L1Table::take_dirty() {
  absl::btree_set<uint64_t> dirty;
  {
    MetadataLock lock(&mutex_);
    dirty.swap(dirty_);
  }
  std::vector<Piece> pieces;
  for (auto it = dirty.begin(); it != dirty.end();) {
    const uint64_t first = *it;
    uint64_t last = first;
    while (++it != dirty.end() && *it - first < kEntriesPerWrite) last = *it;
    Piece piece;
    piece.first_entry = first;
    piece.bytes.resize((last - first + 1) * kL1EntryBytes);
    for (uint64_t i = first; i <= last; ++i) {
      store_big64(&piece.bytes[(i - first) * kL1EntryBytes],
                  entries_[i].load(std::memory_order_acquire));
    }
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

void L1Table::restore(const std::vector<Piece>& pieces) {
  MetadataLock lock(&mutex_);
  for (const Piece& piece : pieces) {
    for (uint64_t i = 0; i < piece.bytes.size() / kL1EntryBytes; ++i) {
      dirty_.insert(piece.first_entry + i);
    }
  }
}

}  // namespace spindle::qcow2

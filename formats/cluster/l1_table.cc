#include "formats/cluster/l1_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/io_vector.h"

namespace spindle {
namespace {

// Changed entries that stand this near to each other are written together.
constexpr uint64_t kEntriesPerWrite = 64;  // 512 bytes
// The table is read in pieces of this size: a long one needs its memory once.
constexpr uint64_t kEntriesPerRead = (uint64_t{1} << 20) / L1Table::kEntryBytes;

}  // namespace

L1Table::L1Table(HostOffset host, uint64_t entry_count, L1EntryBits bits)
    : bits_(bits),
      host_(host),
      entry_count_(entry_count),
      entries_(allocate(entry_count)) {}

uint64_t* L1Table::allocate(uint64_t entry_count) {
  return static_cast<uint64_t*>(
      std::calloc(std::max<uint64_t>(entry_count, 1), sizeof(uint64_t)));
}

absl::Status L1Table::load(ByteChannel* file) {
  if (entries_ == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for an L1 table of ", entry_count_, " entries"));
  }
  std::vector<uint8_t> bytes(std::min(entry_count_, kEntriesPerRead) *
                             kEntryBytes);
  for (uint64_t first = 0; first < entry_count_; first += kEntriesPerRead) {
    const uint64_t count = std::min(kEntriesPerRead, entry_count_ - first);
    absl::Status status =
        file->read(Purpose::kL1Load, bytes.data(), count * kEntryBytes,
                   host_.bytes + first * kEntryBytes);
    if (!status.ok()) return status;
    // What is a hole in the file stays one in memory.
    if (IoVector(bytes.data(), count * kEntryBytes).is_zero()) continue;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t raw = load_big64(&bytes[i * kEntryBytes]);
      if (raw != 0) entry(first + i).store(raw, std::memory_order_relaxed);
    }
  }
  return absl::OkStatus();
}

HostOffset L1Table::l2_table(uint64_t index) const {
  return HostOffset{raw_entry(index) & bits_.offset_mask};
}

bool L1Table::is_own(uint64_t index) const {
  const uint64_t entry = raw_entry(index);
  return (entry & bits_.own_flag) == bits_.own_flag &&
         (entry & bits_.offset_mask) != 0;
}

void L1Table::set_own(uint64_t index, bool own) {
  const uint64_t before = raw_entry(index);
  const uint64_t after =
      own ? before | bits_.own_flag : before & ~bits_.own_flag;
  if (after == before) return;
  entry(index).store(after, std::memory_order_release);
  MetadataLock lock(&mutex_);
  dirty_.insert(index);
}

void L1Table::replace(const std::vector<uint64_t>& raw_entries) {
  for (uint64_t i = 0; i < entry_count_; ++i) {
    entry(i).store(i < raw_entries.size() ? raw_entries[i] : 0,
                   std::memory_order_release);
  }
}

void L1Table::clear_from(uint64_t first) {
  for (uint64_t i = first; i < entry_count_; ++i)
    entry(i).store(0, std::memory_order_release);
}

void L1Table::grow(HostOffset host, uint64_t entry_count) {
  Entries entries(allocate(entry_count));
  if (entries == nullptr) std::abort();
  for (uint64_t i = 0; i < entry_count_; ++i)
    entry_of(entries.get(), i).store(raw_entry(i), std::memory_order_relaxed);
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
    entry(index).store(l2_table.bytes | bits_.own_flag,
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
    piece.bytes.resize((last - first + 1) * kEntryBytes);
    for (uint64_t i = first; i <= last; ++i) {
      store_big64(&piece.bytes[(i - first) * kEntryBytes],
                  entry(i).load(std::memory_order_acquire));
    }
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

void L1Table::restore(const std::vector<Piece>& pieces) {
  MetadataLock lock(&mutex_);
  for (const Piece& piece : pieces) {
    for (uint64_t i = 0; i < piece.bytes.size() / kEntryBytes; ++i) {
      dirty_.insert(piece.first_entry + i);
    }
  }
}

}  // namespace spindle

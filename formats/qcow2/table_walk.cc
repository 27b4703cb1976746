#include "formats/qcow2/table_walk.h"

#include <algorithm>

#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/run_pieces.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kL1EntriesPerRead = 8192;
// Bounds what the findings of one batch can take.
constexpr uint64_t kL2EntriesPerBatch = uint64_t{256} << 10;
constexpr size_t kMaxHelpers = 7;

// The L1 entries [first, first + count) that are not zero.
absl::StatusOr<std::vector<L2Place>> read_l1(const CheckContext& context,
                                             const L1Place& l1, uint64_t first,
                                             uint64_t count) {
  std::vector<uint8_t> bytes(count * kL1EntryBytes);
  absl::Status status =
      context.file->read(Purpose::kL1Load, bytes.data(), bytes.size(),
                         l1.offset + first * kL1EntryBytes);
  if (!status.ok()) return status;
  std::vector<L2Place> places;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t entry = load_big64(&bytes[i * kL1EntryBytes]);
    if (entry != 0) places.push_back({first + i, entry, entry & kL1OffsetMask});
  }
  return places;
}

// How many of the table's entries the file holds; the others are zero.
uint64_t entries_in_file(const CheckContext& context, const L1Place& l1) {
  const uint64_t end = context.file->length_bytes();
  return l1.offset >= end
             ? 0
             : std::min(l1.entry_count,
                        divide_round_up(end - l1.offset, kL1EntryBytes));
}

}  // namespace

absl::Status walk_l2_tables(
    CheckContext* context, const L1Place& l1, WalkOrder order,
    absl::FunctionRef<void(const L2Place& place, Findings* findings)> visit) {
  const uint64_t batch = std::max<uint64_t>(
      kL2EntriesPerBatch / context->header.l2_entry_count(), 1);
  Executor* const executor =
      order == WalkOrder::kParallel ? context->options.executor : nullptr;
  const uint64_t in_file = entries_in_file(*context, l1);
  for (uint64_t first = 0; first < in_file; first += kL1EntriesPerRead) {
    const uint64_t count = std::min(kL1EntriesPerRead, in_file - first);
    const absl::StatusOr<std::vector<L2Place>> places =
        read_l1(*context, l1, first, count);
    if (!places.ok()) {
      Findings findings(context->wants_lines());
      findings.check_error({Finding::Kind::kL1TableUnreadable});
      context->say(&findings);
      return places.status();
    }
    for (size_t begin = 0; begin < places->size(); begin += batch) {
      absl::Status status = context->interrupted();
      if (!status.ok()) return status;
      const size_t pieces = std::min<size_t>(batch, places->size() - begin);
      std::vector<Findings> findings(pieces, Findings(context->wants_lines()));
      run_pieces(executor, pieces, kMaxHelpers, [&](size_t i) {
        if (context->interrupted().ok())
          visit((*places)[begin + i], &findings[i]);
      });
      for (Findings& of_piece : findings) context->say(&of_piece);
    }
    context->advance(count);
  }
  context->advance(l1.entry_count - in_file);
  return context->interrupted();
}

absl::Status L2TableBytes::read(const CheckContext& context, uint64_t offset) {
  entry_bytes_ = context.header.l2_entry_size_bytes();
  bytes_.clear();
  if (offset >= context.file->length_bytes()) return absl::OkStatus();
  bytes_.resize(context.header.cluster_size_bytes());
  return context.file->read(Purpose::kL2Load, bytes_.data(), bytes_.size(),
                            offset);
}

uint64_t L2TableBytes::entry(uint64_t index) const {
  return load_big64(&bytes_[index * entry_bytes_]);
}

uint64_t L2TableBytes::bitmap(uint64_t index) const {
  return entry_bytes_ == kExtendedL2EntryBytes
             ? load_big64(&bytes_[index * entry_bytes_ + kL2EntryBytes])
             : 0;
}

void L2TableBytes::set_entry(uint64_t index, uint64_t value) {
  store_big64(&bytes_[index * entry_bytes_], value);
}

}  // namespace spindle::qcow2

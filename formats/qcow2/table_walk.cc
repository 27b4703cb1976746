#include "formats/qcow2/table_walk.h"

#include <algorithm>
#include <utility>

#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/run_pieces.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kL1EntriesPerRead = 8192;
constexpr uint64_t kL2EntriesPerPiece = 4096;
// Bounds what the findings of one batch can take.
constexpr uint64_t kL2EntriesPerBatch = uint64_t{256} << 10;

class Walk {
 public:
  using Visit = absl::FunctionRef<void(const L2Piece&, Findings*)>;
  Walk(CheckContext* context, const L1Place& l1, WalkOrder order, Visit visit)
      : context_(*context),
        l1_(l1),
        executor_(order == WalkOrder::kParallel ? context->options.executor
                                                : nullptr),
        visit_(visit),
        entries_per_piece_(
            std::min(kL2EntriesPerPiece, context->header.l2_entry_count())) {}

  absl::Status run();

 private:
  // The L1 entries [first, first + count).
  absl::Status read_l1(uint64_t first, uint64_t count,
                       std::vector<uint64_t>* entries) const;
  absl::Status walk_tables(uint64_t first,
                           const std::vector<uint64_t>& entries);
  absl::Status visit_batch();
  // Says what was found in a piece; pieces in order.
  void conclude(const L2Piece& piece, Findings* findings);

  CheckContext& context_;
  const L1Place l1_;
  Executor* const executor_;
  const Visit visit_;
  const uint64_t entries_per_piece_;
  std::vector<L2Piece> batch_;
  // Of the table whose pieces are being concluded.
  uint64_t data_continue_at_ = 0;
  bool is_unreadable_ = false;
};

absl::Status Walk::read_l1(uint64_t first, uint64_t count,
                           std::vector<uint64_t>* entries) const {
  std::vector<uint8_t> bytes(count * kL1EntryBytes);
  absl::Status status =
      context_.file->read(Purpose::kL1Load, bytes.data(), bytes.size(),
                          l1_.offset + first * kL1EntryBytes);
  entries->resize(count);
  for (uint64_t i = 0; i < count; ++i)
    (*entries)[i] = load_big64(&bytes[i * kL1EntryBytes]);
  return status;
}

void Walk::conclude(const L2Piece& piece, Findings* findings) {
  if (piece.begins_table()) {
    data_continue_at_ = 0;
    is_unreadable_ = false;
  }
  const Findings::DataRun& run = findings->data;
  if (run.begin != 0) {
    // In line with the piece before?
    if (data_continue_at_ != 0 && data_continue_at_ != run.begin)
      ++findings->counts.fragmented_clusters;
    data_continue_at_ = run.end;
  }
  if (findings->unreadable != Findings::Unreadable::kNo &&
      !std::exchange(is_unreadable_, true)) {
    ++findings->counts.check_errors;
    if (findings->unreadable == Findings::Unreadable::kSay)
      findings->note({Finding::Kind::kL2TableUnreadable});
  }
  context_.say(findings);
}

absl::Status Walk::visit_batch() {
  absl::Status status = context_.next_piece();
  if (!status.ok()) return status;
  std::vector<Findings> findings(batch_.size(),
                                 Findings(context_.wants_lines()));
  run_pieces(executor_, batch_.size(), batch_.size(), [&](size_t i) {
    if (context_.interrupted().ok()) visit_(batch_[i], &findings[i]);
  });
  for (size_t i = 0; i < batch_.size(); ++i) conclude(batch_[i], &findings[i]);
  batch_.clear();
  return status;
}

absl::Status Walk::walk_tables(uint64_t first,
                               const std::vector<uint64_t>& entries) {
  const uint64_t most = kL2EntriesPerBatch / entries_per_piece_;
  const uint64_t entry_count = context_.header.l2_entry_count();
  for (uint64_t i = 0; i < entries.size(); ++i) {
    if (entries[i] == 0) continue;
    L2Piece piece{.l1_index = first + i,
                  .l1_entry = entries[i],
                  .table_offset = entries[i] & kL1OffsetMask,
                  .first_entry = 0,
                  .entry_count = entries_per_piece_};
    for (; piece.first_entry < entry_count;
         piece.first_entry += piece.entry_count) {
      batch_.push_back(piece);
      if (batch_.size() < most) continue;
      absl::Status status = visit_batch();
      if (!status.ok()) return status;
    }
  }
  return batch_.empty() ? absl::OkStatus() : visit_batch();
}

absl::Status Walk::run() {
  // What the file does not hold of the table is zero.
  const uint64_t end = context_.file->length_bytes();
  const uint64_t in_file =
      l1_.offset >= end
          ? 0
          : std::min(l1_.entry_count, divide_round_up(end - l1_.offset,
                                                      uint64_t{kL1EntryBytes}));
  std::vector<uint64_t> entries;
  for (uint64_t first = 0; first < in_file; first += kL1EntriesPerRead) {
    const uint64_t count = std::min(kL1EntriesPerRead, in_file - first);
    absl::Status status = read_l1(first, count, &entries);
    if (!status.ok()) {
      Findings findings(context_.wants_lines());
      findings.check_error({Finding::Kind::kL1TableUnreadable});
      context_.say(&findings);
      return status;
    }
    status = walk_tables(first, entries);
    if (!status.ok()) return status;
    context_.advance(count);
  }
  context_.advance(l1_.entry_count - in_file);
  return context_.next_piece();
}

}  // namespace

absl::Status walk_l2_tables(
    CheckContext* context, const L1Place& l1, WalkOrder order,
    absl::FunctionRef<void(const L2Piece& piece, Findings* findings)> visit) {
  return Walk(context, l1, order, visit).run();
}

absl::Status L2Entries::read(const CheckContext& context,
                             const L2Piece& piece) {
  entry_bytes_ = context.header.l2_entry_size_bytes();
  offset_ = piece.table_offset + piece.first_entry * entry_bytes_;
  bytes_.clear();
  if (offset_ >= context.file->length_bytes()) return absl::OkStatus();
  bytes_.resize(piece.entry_count * entry_bytes_);
  return context.file->read(Purpose::kL2Load, bytes_.data(), bytes_.size(),
                            offset_);
}

uint64_t L2Entries::entry(uint64_t index) const {
  return load_big64(&bytes_[index * entry_bytes_]);
}

uint64_t L2Entries::bitmap(uint64_t index) const {
  return entry_bytes_ == kExtendedL2EntryBytes
             ? load_big64(&bytes_[index * entry_bytes_ + kL2EntryBytes])
             : 0;
}

void L2Entries::set_entry(uint64_t index, uint64_t value) {
  store_big64(&bytes_[index * entry_bytes_], value);
}

}  // namespace spindle::qcow2

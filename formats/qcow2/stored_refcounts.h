// StoredRefcounts: the refcounts as the file has them, compared with the
// references that were counted, and put right in place.
//
// The refcount table is in memory; blocks are read in pieces, several at a
// time.
//
// Thread safety: get(), from any thread; everything else one thread, which is
// helped by those of options.executor.
#ifndef SPINDLE_FORMATS_QCOW2_STORED_REFCOUNTS_H_
#define SPINDLE_FORMATS_QCOW2_STORED_REFCOUNTS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "formats/qcow2/check_context.h"
#include "formats/qcow2/findings.h"
#include "formats/qcow2/reference_counter.h"

namespace spindle::qcow2 {

class StoredRefcounts {
 public:
  struct Fix {
    bool leaks = false;
    bool errors = false;
    bool any() const { return leaks || errors; }
  };
  struct Outcome {
    // A cluster that is in use has no refcount: there may be no block for it.
    bool unusable = false;
    uint64_t highest_cluster = 0;
  };

  explicit StoredRefcounts(CheckContext* context) : context_(context) {}
  // Reads the refcount table.
  absl::Status load();

  // Steps of progress that each of compare() and keep() takes.
  static uint64_t steps_for(uint64_t clusters);

  uint64_t table_entry_count() const { return table_.size(); }
  uint64_t table_entry(uint64_t index) const { return table_[index]; }
  uint64_t block_offset(uint64_t index) const;

  // Compares the first `clusters` ones, and writes what `fix` asks for.
  absl::Status compare(const ReferenceCounter& counter, uint64_t clusters,
                       Fix fix, Outcome* outcome);

  // From now on `keeper` holds the stored refcounts of the first `clusters`
  // clusters instead of what it held; get() then needs no file for them.
  absl::Status keep(ReferenceCounter* keeper, uint64_t clusters);
  // Nothing if it cannot be read.
  std::optional<uint64_t> get(uint64_t cluster) const;

  // The first of `count` clusters side by side, as low as can be, that are free
  // and have refcount blocks.
  std::optional<uint64_t> find_free(uint64_t count) const;
  // Counts one reference to each of the clusters, not durably; get() does not
  // follow.  REQUIRES: find_free() found them.
  absl::Status take(uint64_t first, uint64_t count);

 private:
  enum class BlockState { kNone, kRead, kUnaligned, kUnreadable };
  // Refcounts side by side, within one block.
  struct Piece {
    uint64_t first_cluster = 0;
    uint64_t count = 0;
    uint64_t block_index = 0;
    // What became of it.
    BlockState state = BlockState::kNone;
    Outcome outcome;
    Findings findings{false};
    absl::Status status = {};
  };
  // A piece's refcounts as the file has them.
  struct Bytes {
    std::vector<uint8_t> bytes;
    uint64_t offset = 0;  // in the file
  };

  // Visits the first `clusters` ones in pieces, several at a time, then calls
  // `conclude` for each, in order.
  absl::Status for_each_piece(
      uint64_t clusters, absl::FunctionRef<void(Piece* piece)> visit,
      absl::FunctionRef<absl::Status(Piece* piece)> conclude);
  BlockState read_piece(const Piece& piece, Bytes* bytes) const;
  BlockState read_block(uint64_t index, std::vector<uint8_t>* block) const;
  bool is_unreadable(uint64_t index) const;
  void compare_piece(const ReferenceCounter& counter, Fix fix, Piece* piece);
  absl::Status conclude_comparison(Piece* piece, Outcome* outcome);
  // The cluster `index` of the piece; true if its entry in `bytes` was changed.
  bool compare_one(uint64_t index, uint64_t references, Fix fix,
                   std::vector<uint8_t>* bytes, Piece* piece);

  CheckContext* const context_;
  std::vector<uint64_t> table_;
  const ReferenceCounter* keeper_ = nullptr;
  uint64_t kept_clusters_ = 0;
  std::vector<bool> unreadable_;
  bool said_unaligned_ = false;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_STORED_REFCOUNTS_H_

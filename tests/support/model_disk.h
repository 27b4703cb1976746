// ModelDisk: knows what each byte of a disk may contain while requests overlap.
//
// Every change (write, write-zeroes, discard) has an interval [submit,
// complete] on one logical clock, and every write a stamp of its own from
// which all its bytes are derived by position; so a byte that is read back
// tells which writes it may come from.  For each 512-byte sector the model
// keeps the acceptable values, each with the bytes that it is acceptable for:
// the last completed ones and those of all changes in flight.  A read of
// [submit, complete] must see, byte by byte, a value that was acceptable at
// some moment of that interval.
//
//   write, write-zeroes   completed: replaces what completed before it was
//                         submitted; in flight: one more possibility
//   discard               old, zeroes, or the backing content; never replaces
//   failed change         old or new
//   withdrawn change      never happened
//   growth                a write-zeroes of what is gained: whatever was cut
//                         off there before has gone
//   shrink                nothing: what it cuts off cannot be read
//   applied snapshot      a write of the whole disk, of content that is known
//
// Where nothing is in flight content is stable: what a read of a whole sector
// has ruled out may not come back.
//
// How to use it: begin a change before submitting it to the disk under test,
// and end it after its completion was seen; likewise for reads.
//
// Memory: values that are definitely replaced are forgotten as soon as no read
// is in progress that might have seen them.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_TESTS_SUPPORT_MODEL_DISK_H_
#define SPINDLE_TESTS_SUPPORT_MODEL_DISK_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "tests/support/model_length.h"

namespace spindle::testing {

// Fills `out` with the content of a disk from byte `offset` on.
using ContentFunction =
    std::function<void(uint64_t offset, absl::Span<uint8_t> out)>;

// The bytes that the write with this stamp has at `offset` and behind.
void stamp_content(uint64_t stamp, uint64_t offset, absl::Span<uint8_t> out);

class ModelDisk {
 public:
  struct Options {
    uint64_t length_bytes = 0;
    // What the disk holds at first; empty: zeroes.
    ContentFunction initial;
    // What may show through a discarded range besides zeroes; empty: nothing.
    ContentFunction backing;
  };

  enum class Outcome {
    kDone,
    kFailed,     // with an error: may or may not have happened, in parts
    kWithdrawn,  // cancelled before it started
  };

  // A change of the disk, begun and not yet ended, or ended.
  class Change;
  using ChangeRef = std::shared_ptr<Change>;

  // A read that was begun.  Ended by end_read() or drop_read(), once.
  struct Read {
    ByteRange range;
    uint64_t submit = 0;
  };

  // The first byte of a read that is not acceptable.
  struct Mismatch {
    uint64_t offset = 0;
    uint8_t found = 0;
    std::string explanation;
  };

  explicit ModelDisk(Options options);
  ~ModelDisk();
  ModelDisk(const ModelDisk&) = delete;
  ModelDisk& operator=(const ModelDisk&) = delete;

  // Changed by the caller, around each change of the disk's own.
  ModelLength& length() { return length_; }
  uint64_t length_bytes() const { return length_.newest(); }

  ChangeRef begin_write(ByteRange range);
  ChangeRef begin_write_zeroes(ByteRange range);
  ChangeRef begin_discard(ByteRange range);
  // Makes the disk `content`, from its first byte on.
  ChangeRef begin_replacement(
      std::shared_ptr<const std::vector<uint8_t>> content);
  // Fills `memory` with what the write `change` writes.
  // REQUIRES: memory has the length of the write.
  static void fill(const Change& change, const IoVector& memory);
  // Once per change.
  void end(const ChangeRef& change, Outcome outcome);

  Read begin_read(ByteRange range);
  // Judges `data`, what was read.  REQUIRES: data has the read's length.
  std::optional<Mismatch> end_read(const Read& read,
                                   absl::Span<const uint8_t> data);
  // The read failed, or was withdrawn.
  void drop_read(const Read& read);

  // How many values are remembered in all, for tests of the memory bound.
  size_t value_count() const;

 private:
  // What a byte may be, by where it comes from.
  enum class Source : uint8_t { kInitial, kStamp, kZero, kBacking, kGiven };
  // One acceptable value of the bytes [first, last) of a sector.
  struct Value {
    ChangeRef change;
    Source source = Source::kInitial;
    uint16_t first = 0;
    uint16_t last = 0;
    // Reads that are submitted later must not see it; 0: not ruled out.
    uint64_t ruled_out = 0;
  };
  using Sectors = absl::flat_hash_map<uint64_t, std::vector<Value>>;
  struct Shard {
    mutable absl::Mutex mutex;
    // Sectors that were never changed have no entry.
    Sectors sectors ABSL_GUARDED_BY(mutex);
  };
  using SectorBytes = std::array<uint8_t, kSectorSizeBytes>;
  using ByteSet = std::array<bool, kSectorSizeBytes>;

  static constexpr size_t kShards = 64;
  static constexpr uint64_t kSectorsPerRun = 8;

  Shard& shard_of(uint64_t sector) const {
    return shards_[(sector / kSectorsPerRun) % kShards];
  }
  uint64_t tick() { return clock_.fetch_add(1) + 1; }
  // No read in progress was submitted before this.
  uint64_t horizon();

  ChangeRef begin(Source source, ByteRange range);
  void enter(const ChangeRef& change);
  void add_values(const ChangeRef& change, std::vector<Value>* values,
                  uint16_t first, uint16_t last, uint64_t horizon);
  Value initial_value() const;
  // Where `value` was replaced for reads from `time` on.
  static ByteSet replaced_bytes(const std::vector<Value>& values,
                                const Value& value, uint64_t time);
  static bool replaces(const Value& later, const Value& earlier, uint64_t time);
  static void forget_replaced(std::vector<Value>* values, uint64_t horizon);
  void content_of(const Value& value, uint64_t sector, SectorBytes* out) const;

  std::optional<Mismatch> judge_sector(const Read& read, uint64_t sector,
                                       size_t first,
                                       absl::Span<const uint8_t> data,
                                       uint64_t now,
                                       std::vector<Value>* values);
  // True if some byte of the sector has more than one value.
  static bool is_ambiguous(const std::vector<Value>& values);
  void rule_out(const Read& read, uint64_t sector,
                absl::Span<const uint8_t> data, uint64_t now,
                std::vector<Value>* values) const;
  ByteSet matching_bytes(const Value& value, const std::vector<Value>& values,
                         uint64_t sector, absl::Span<const uint8_t> data,
                         uint64_t time) const;
  std::string explain(const std::vector<Value>& values, uint64_t sector,
                      size_t byte, uint64_t time) const;

  const Options options_;
  const ChangeRef initial_;
  ModelLength length_;
  std::atomic<uint64_t> clock_{1};
  std::atomic<uint64_t> next_stamp_{1};

  mutable std::array<Shard, kShards> shards_;

  absl::Mutex reads_mutex_;
  // Submission times of the reads in progress.
  std::multiset<uint64_t> reads_ ABSL_GUARDED_BY(reads_mutex_);
};

// One change, as the model remembers it.
class ModelDisk::Change {
 public:
  Change(uint64_t stamp, ByteRange range, bool definite,
         std::shared_ptr<const std::vector<uint8_t>> content = nullptr)
      : stamp(stamp),
        range(range),
        definite(definite),
        content(std::move(content)) {}

  const uint64_t stamp;
  const ByteRange range;
  // Replaces what was there before (not so a discard).
  const bool definite;
  // Of a replacement; else null.
  const std::shared_ptr<const std::vector<uint8_t>> content;
  // Drawn before the change is entered anywhere.
  uint64_t submit = 0;
  std::atomic<Outcome> outcome{Outcome::kDone};
  // 0: in flight.  Set after outcome.
  std::atomic<uint64_t> complete{0};
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_MODEL_DISK_H_

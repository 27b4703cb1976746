// What a check finds, in order: kept compactly until it is said.
//
// Pieces of a check run in parallel, each with Findings of its own; the check
// then says them in the order of the pieces.
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_QCOW2_FINDINGS_H_
#define SPINDLE_FORMATS_QCOW2_FINDINGS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/image_check.h"

namespace spindle::qcow2 {

struct Finding {
  // The numbers that belong to each kind stand beside it.
  enum class Kind : uint8_t {
    kBeyondEnd,               // offset, length
    kOverflow,                // offset
    kL1ReservedBits,          // entry
    kL2TableUnaligned,        // offset
    kL2TableUnreadable,       //
    kL1TableUnreadable,       //
    kL2ReservedBits,          // entry
    kCompressedCopied,        // offset
    kCompressedExternal,      // index, entry
    kCompressedSubclusters,   // index, entry
    kSubclustersBoth,         // offset
    kUnallocatedSubclusters,  //
    kPreallocatedUnaligned,   // offset
    kDataUnaligned,           // offset
    kCopiedOfL2Table,         // L1 index, entry, refcount
    kCopiedOfData,            // entry, refcount
    kBlockReservedBits,       // index
    kBlockUnaligned,          // index
    kBlockBeyondEnd,          // index
    kBlockRefcount,           // index, refcount
    kBlockOffsetUnaligned,    // offset, index
    kNoRefcount,              // cluster
    kRefcountTooLow,          // cluster, refcount, references
    kRefcountTooHigh,         // cluster, refcount, references
  };
  Kind kind;
  bool repairing = false;
  uint64_t a = 0;
  uint64_t b = 0;
  uint64_t c = 0;
};

// The line or lines that qemu-img prints for it, without the last line's end.
std::string to_line(const Finding& finding);

class Findings {
 public:
  // `keep_lines`: somebody wants to read them.
  explicit Findings(bool keep_lines) : keep_lines_(keep_lines) {}

  CheckResult counts;
  // The piece's table could not be read: counted once for a table.
  enum class Unreadable { kNo, kSay, kSaidBefore };
  Unreadable unreadable = Unreadable::kNo;
  // Where the data of a piece begin, and where they would go on; 0: none.
  struct DataRun {
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  DataRun data;

  // A cluster with data; 0 counts as none.
  void add_data(uint64_t offset, uint64_t cluster_bytes) {
    if (data.end != 0 && offset != data.end) ++counts.fragmented_clusters;
    if (data.begin == 0) data.begin = offset;
    data.end = offset + cluster_bytes;
  }
  // A corruption that stays.
  void corruption(const Finding& finding) {
    ++counts.corruptions;
    note(finding);
  }
  void check_error(const Finding& finding) {
    ++counts.check_errors;
    note(finding);
  }
  void note(const Finding& finding) {
    if (!keep_lines_) return;
    if (lines_.size() < kMaxLines) {
      lines_.push_back(finding);
    } else {
      ++dropped_lines_;
    }
  }
  // So many lines wait that they should be said before there are more.
  bool are_many() const { return lines_.size() >= kManyLines; }

  // Says the lines and adds the counts to `total`; empty afterwards.
  void say(const std::function<void(absl::string_view)>& report,
           CheckResult* total);

 private:
  // 32 MiB of them: what is beyond is only counted.
  static constexpr size_t kMaxLines = size_t{1} << 20;
  static constexpr size_t kManyLines = size_t{1} << 14;

  bool keep_lines_;
  uint64_t dropped_lines_ = 0;
  std::deque<Finding> lines_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_FINDINGS_H_

// QuorumDriver: several drivers that hold the same disk, of which enough must
// agree (QEMU's quorum).
//
// What is written goes to all of them, one after the other, and has succeeded
// if as many as the threshold have it.  What is read is what as many say; or,
// with the pattern "fifo", what the first says that answers.
//
// Thread safety: any thread may call any method at any time.  Copies of a disk
// must not see two writes in two orders, nor a reader half of a write: changes
// hold their byte range exclusively, reads shared.
#ifndef SPINDLE_FORMATS_FILTERS_QUORUM_DRIVER_H_
#define SPINDLE_FORMATS_FILTERS_QUORUM_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/aligned_buffer.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/range_tracker.h"

namespace spindle {

struct QuorumOptions {
  enum class ReadPattern { kQuorum, kFifo };

  size_t vote_threshold = 0;
  // Of exactly two: a difference is an error at once, and says where.
  bool blkverify = false;
  // What a read finds outvoted is written anew.
  bool rewrite_corrupted = false;
  ReadPattern read_pattern = ReadPattern::kQuorum;
};

// "vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern".
// Errors: kInvalidArgument.
absl::StatusOr<QuorumOptions> parse_quorum_options(const OptionMap& options,
                                                   size_t child_count);

class QuorumDriver final : public BlockDriver {
 public:
  // REQUIRES: the options fit the number of children (parse_quorum_options).
  // Errors: EIO if the children differ in length.
  static absl::StatusOr<std::shared_ptr<BlockDriver>> create(
      std::vector<std::shared_ptr<BlockDriver>> children,
      const QuorumOptions& options);

  // Errors: kDataLoss with EIO if no answer has enough votes; where too few
  // answer at all, the first one's error.
  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;

  absl::string_view format_name() const override { return "quorum"; }
  uint64_t length_bytes() const override {
    return children_[0]->length_bytes();
  }
  bool read_only() const override;
  DriverLimits limits() const override;
  ImageInfo info() const override;
  // What all of them can do; not discards, which may leave old bytes in one and
  // zeroes in another.
  Capabilities capabilities() const override;

  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  // Zeroes where all of them have some.
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::Status inactivate() override;
  absl::Status activate() override;
  absl::Status close() override;

 private:
  using Step = absl::FunctionRef<absl::Status(BlockDriver& child)>;

  QuorumDriver(std::vector<std::shared_ptr<BlockDriver>> children,
               const QuorumOptions& options);

  // Does `step` to all; OK if as many as the threshold succeed.
  absl::Status vote(Step step) const;
  // Does `step` to all, whatever happens; the first error.
  absl::Status to_all(Step step) const;
  absl::Status read_first(const IoVector& qiov, Sector sector) const;
  absl::Status read_piece(const IoVector& qiov, Sector sector);

  const std::vector<std::shared_ptr<BlockDriver>> children_;
  const QuorumOptions options_;
  const size_t piece_bytes_;
  AlignedBufferPool buffers_;
  RangeTracker ranges_;
};

const DriverFilter* quorum_filter();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_QUORUM_DRIVER_H_

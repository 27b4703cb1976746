// CopyOnReadDriver: what is read from the backing chain is written into the
// image (QEMU's copy-on-read).
//
// A read whose range is all in the image passes through.  Of any other one,
// whole clusters are read, and what the image does not have is written into it;
// zeroes become zero clusters.  With a bottom, only what lies in the layers
// down to that one is copied.
//
// While a cluster is copied, nothing else changes it: a guest's write comes
// before (and is found in the image) or after.  A failed copy fails the read,
// as in QEMU.
//
// Thread safety: any thread may call any method at any time.  A copy waits for
// running requests that change its clusters, and those for it; nobody else
// waits.
#ifndef SPINDLE_FORMATS_FILTERS_COPY_ON_READ_DRIVER_H_
#define SPINDLE_FORMATS_FILTERS_COPY_ON_READ_DRIVER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "engine/aligned_buffer.h"
#include "engine/filter_driver.h"
#include "engine/format.h"
#include "engine/range_tracker.h"

namespace spindle {

class CopyOnReadDriver final : public FilterDriver {
 public:
  // `bottom`: the file name of the last layer that is copied from; empty: all.
  // Errors: kPermissionDenied if `child` is read-only, kNotFound if the bottom
  // is not in the chain below it.
  static absl::StatusOr<std::shared_ptr<BlockDriver>> create(
      std::shared_ptr<BlockDriver> child, const std::string& bottom);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  // Always 0: whether a range is in the image cannot be told without blocking.
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;
  absl::string_view format_name() const override { return "copy-on-read"; }
  Capabilities capabilities() const override;

  // Each keeps copies out of what it changes.
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::Status write_compressed(const IoVector& qiov, Sector sector) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;
  absl::Status resize(uint64_t length_bytes,
                      Preallocation preallocation) override;
  absl::StatusOr<CheckResult> check(const CheckOptions& options) override;
  absl::Status apply_snapshot(absl::string_view snapshot) override;
  absl::Status amend(const AmendOptions& options) override;
  absl::Status reopen(const ReopenOptions& options) override;
  absl::Status inactivate() override;
  absl::Status activate() override;

 private:
  // What is true of the first bytes of a range.
  struct Piece {
    uint64_t length;
    bool copy;
  };

  CopyOnReadDriver(std::shared_ptr<BlockDriver> child,
                   std::shared_ptr<BlockDriver> bottom);

  bool copies() const;
  Piece first_piece(ByteRange range);
  // True if `layer` or one below it, down to the bottom, has the first byte.
  absl::StatusOr<Piece> first_piece_above_bottom(ByteRange range);
  bool must_copy(ByteRange range);
  absl::Status read_and_copy(const IoVector& qiov, uint64_t offset);
  absl::Status copy_chunk_held(ByteRange chunk, uint8_t* bytes);
  absl::Status write_copy_held(ByteRange range, uint8_t* bytes);

  const uint64_t cluster_bytes_;
  const uint64_t alignment_bytes_;
  const bool has_status_;
  const bool has_zeroes_;
  AccessObserver* const child_observer_;
  // Null: everything is copied.
  const std::shared_ptr<BlockDriver> bottom_;
  AlignedBufferPool buffers_;
  // Copies hold their clusters exclusively, changes their range shared.
  RangeTracker ranges_;
};

// Option: bottom.
const DriverFilter* copy_on_read_filter();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_COPY_ON_READ_DRIVER_H_

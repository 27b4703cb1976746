// CompressDriver: what is written goes out compressed (QEMU's compress).
//
// The driver below must know compressed writes (qcow2).  They are made of whole
// clusters: of a write that covers one in part the rest is read first, and the
// cluster is written anew.  Zeroes and discards pass through.
//
// Thread safety: any thread may call any method at any time.  A write of part
// of a cluster keeps others out of that cluster; nobody else waits.
#ifndef SPINDLE_FORMATS_FILTERS_COMPRESS_DRIVER_H_
#define SPINDLE_FORMATS_FILTERS_COMPRESS_DRIVER_H_

#include <cstdint>
#include <memory>

#include "engine/aligned_buffer.h"
#include "engine/filter_driver.h"
#include "engine/format.h"
#include "engine/range_tracker.h"

namespace spindle {

class CompressDriver final : public FilterDriver {
 public:
  // Errors: kUnimplemented if `child` cannot compress.
  static absl::StatusOr<std::shared_ptr<BlockDriver>> create(
      std::shared_ptr<BlockDriver> child);

  absl::Status write(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;
  absl::string_view format_name() const override { return "compress"; }
  DriverLimits limits() const override;
  Capabilities capabilities() const override;
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::Status write_compressed(const IoVector& qiov, Sector sector) override;

 private:
  CompressDriver(std::shared_ptr<BlockDriver> child, uint64_t cluster_bytes);

  // `range` with the rest of its clusters, as far as the image goes.
  ByteRange whole_clusters(ByteRange range) const;
  absl::Status write_clusters(const IoVector& qiov, uint64_t offset);
  absl::Status write_parts(const IoVector& qiov, uint64_t offset,
                           ByteRange clusters);

  const uint64_t cluster_bytes_;
  const uint64_t child_alignment_;
  AlignedBufferPool buffers_;
  // Changes hold their clusters shared, those of parts exclusively.
  RangeTracker ranges_;
};

const DriverFilter* compress_filter();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_COMPRESS_DRIVER_H_

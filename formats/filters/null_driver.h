// NullDriver: a disk that keeps nothing (QEMU's null-co and null-aio).
//
// Writes are forgotten.  Reads leave the memory as it is, or fill it with
// zeroes if that was asked for.  Each request takes as long as was asked for,
// on its caller's thread.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_FORMATS_FILTERS_NULL_DRIVER_H_
#define SPINDLE_FORMATS_FILTERS_NULL_DRIVER_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "engine/block_driver.h"
#include "engine/format.h"

namespace spindle {

struct NullOptions {
  uint64_t length_bytes = uint64_t{1} << 30;
  absl::Duration latency = absl::ZeroDuration();
  bool read_zeroes = false;
  bool read_only = false;
};

class NullDriver final : public BlockDriver {
 public:
  // `name` must live as long as the process.
  NullDriver(absl::string_view name, const NullOptions& options);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;
  absl::string_view format_name() const override { return name_; }
  std::string filename() const override;
  uint64_t length_bytes() const override { return options_.length_bytes; }
  bool read_only() const override { return read_only_.load(); }
  Capabilities capabilities() const override;
  ImageInfo info() const override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::Status reopen(const ReopenOptions& options) override;

 private:
  void sleep() const;
  void fill(const IoVector& qiov) const;

  const absl::string_view name_;
  const NullOptions options_;
  std::atomic<bool> read_only_;
};

// "null-co" and "null-aio": size, latency-ns, read-zeroes.
const DriverFilter* null_co_filter();
const DriverFilter* null_aio_filter();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_NULL_DRIVER_H_

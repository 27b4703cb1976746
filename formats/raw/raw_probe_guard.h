// RawProbeGuard: a raw image whose format was guessed.
//
// A guest that writes another format's header into its first sector would
// change what the next guess finds, and with it which files that image may name
// (CVE-2008-2004).  The guard refuses such writes with EPERM; everything else
// goes to the driver below as it is.
//
// Thread safety: as BlockDriver.
#ifndef SPINDLE_FORMATS_RAW_RAW_PROBE_GUARD_H_
#define SPINDLE_FORMATS_RAW_RAW_PROBE_GUARD_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"

namespace spindle {

class RawProbeGuard final : public BlockDriver {
 public:
  // Shares ownership of `file`; `formats` are not owned and must outlive it.
  RawProbeGuard(std::shared_ptr<BlockDriver> file,
                std::vector<const ImageFormat*> formats);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  // Leaves writes to the first sector to write().
  uint64_t try_write(const IoVector& qiov, Sector sector) override;

  absl::string_view format_name() const override { return "raw"; }
  std::string filename() const override;
  uint64_t length_bytes() const override;
  bool read_only() const override;
  DriverLimits limits() const override;
  Capabilities capabilities() const override;
  ImageInfo info() const override;
  std::optional<StorageIdentity> identity() const override;
  AccessObserver* access_observer() override;

  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;
  absl::Status resize(uint64_t length_bytes,
                      Preallocation preallocation) override;
  absl::Status reopen(const ReopenOptions& options) override;
  absl::Status inactivate() override;
  absl::Status activate() override;
  absl::Status close() override;

 private:
  // The format that an image which begins with `qiov` would be taken for;
  // empty: raw.
  absl::string_view format_found_in(const IoVector& qiov) const;

  const std::shared_ptr<BlockDriver> file_;
  const std::vector<const ImageFormat*> formats_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_RAW_PROBE_GUARD_H_

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
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/filter_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"

namespace spindle {

class RawProbeGuard final : public FilterDriver {
 public:
  // Shares ownership of `file`; `formats` are not owned and must outlive it.
  RawProbeGuard(std::shared_ptr<BlockDriver> file,
                std::vector<const ImageFormat*> formats);

  absl::Status write(const IoVector& qiov, Sector sector) override;
  // Leaves writes to the first sector to write().
  uint64_t try_write(const IoVector& qiov, Sector sector) override;
  absl::string_view format_name() const override { return "raw"; }

 private:
  // The format that an image which begins with `qiov` would be taken for;
  // empty: raw.
  absl::string_view format_found_in(const IoVector& qiov) const;

  const std::vector<const ImageFormat*> formats_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_RAW_PROBE_GUARD_H_

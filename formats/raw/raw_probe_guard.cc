#include "formats/raw/raw_probe_guard.h"

#include <errno.h>

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"

namespace spindle {
namespace {

// What raw itself answers to a probe.
constexpr int kLastResort = 1;

}  // namespace

RawProbeGuard::RawProbeGuard(std::shared_ptr<BlockDriver> file,
                             std::vector<const ImageFormat*> formats)
    : FilterDriver(std::move(file)), formats_(std::move(formats)) {}

absl::string_view RawProbeGuard::format_found_in(const IoVector& qiov) const {
  // Every format shows itself in the first sector, which a write covers whole
  // or not at all.
  std::array<uint8_t, kSectorSizeBytes> head;
  qiov.copy_to(0, head.data(), head.size());
  for (const ImageFormat* format : formats_) {
    if (format->probe(head, filename()) > kLastResort) return format->name();
  }
  return {};
}

absl::Status RawProbeGuard::write(const IoVector& qiov, Sector sector) {
  if (sector == Sector(0) && !qiov.empty()) {
    const absl::string_view format = format_found_in(qiov);
    if (!format.empty()) {
      return errno_status(
          EPERM,
          absl::StrCat(
              "write to the first sector of '", filename(),
              "', which would turn it into a ", format,
              " image: its format was guessed to be raw; state format 'raw' to "
              "allow it"));
    }
  }
  return child().write(qiov, sector);
}

uint64_t RawProbeGuard::try_write(const IoVector& qiov, Sector sector) {
  return sector == Sector(0) ? 0 : child().try_write(qiov, sector);
}

}  // namespace spindle

#include "engine/jobs/copy_bitmaps.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"

namespace spindle {

absl::StatusOr<std::vector<DirtyBitmapInfo>> find_bitmaps(BlockDriver& source,
                                                          bool skip_broken,
                                                          const LogSink& log) {
  if (!source.capabilities().has(Capability::kBitmaps))
    return absl::UnimplementedError("Source lacks bitmap support");
  const absl::StatusOr<std::vector<DirtyBitmapInfo>> all =
      source.list_bitmaps();
  if (!all.ok()) return all.status();
  std::vector<DirtyBitmapInfo> sound;
  for (const DirtyBitmapInfo& info : *all) {
    if (!info.inconsistent) {
      sound.push_back(info);
    } else if (skip_broken) {
      if (log) {
        log(LogSeverity::kWarning,
            absl::StrCat("Skipping inconsistent bitmap '", info.name, "'"));
      }
    } else {
      return absl::FailedPreconditionError(
          absl::StrCat("Cannot copy inconsistent bitmap '", info.name, "'"));
    }
  }
  return sound;
}

absl::Status add_bitmaps(const std::vector<DirtyBitmapInfo>& bitmaps,
                         BlockDriver& target) {
  for (const DirtyBitmapInfo& info : bitmaps) {
    const absl::Status status = target.add_bitmap(
        {info.name, info.granularity_bytes, /*enabled=*/false});
    if (absl::IsUnimplemented(status) || absl::IsFailedPrecondition(status)) {
      return absl::UnimplementedError(
          absl::StrCat("Format driver '", target.format_name(),
                       "' does not support bitmaps"));
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status fill_bitmaps(const std::vector<DirtyBitmapInfo>& bitmaps,
                          BlockDriver& source, BlockDriver& target) {
  for (const DirtyBitmapInfo& info : bitmaps) {
    const absl::StatusOr<std::shared_ptr<const DirtyBitmap>> bits =
        source.find_bitmap(info.name);
    absl::Status status =
        bits.ok() ? target.merge_bitmap(info.name, **bits) : bits.status();
    if (status.ok() && info.enabled)
      status = target.enable_bitmap(info.name, true);
    if (!status.ok()) {
      return with_context(
          status, absl::StrCat("Failed to populate bitmap ", info.name));
    }
  }
  return absl::OkStatus();
}

}  // namespace spindle

#include "formats/vdi/check.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "formats/vdi/layout.h"

namespace spindle::vdi {

absl::StatusOr<CheckResult> check_map(absl::Span<const uint32_t> entries,
                                      uint32_t allocated_count,
                                      const CheckOptions& options) {
  CheckResult result;
  const auto found = [&](const std::string& line) {
    ++result.corruptions;
    if (options.report) options.report(absl::StrCat("ERROR: ", line));
  };
  std::vector<bool> used(entries.size());
  uint32_t used_count = 0;
  for (size_t index = 0; index < entries.size(); ++index) {
    if (index % (1 << 16) == 0) {
      if (options.cancelled != nullptr && *options.cancelled)
        return absl::CancelledError("the check was cancelled");
      if (options.progress) options.progress(index, entries.size());
    }
    const uint32_t block = entries[index];
    if (!is_stored(block)) continue;
    if (block >= entries.size()) {
      found(absl::StrCat("block index ", index, " too large, is ", block));
      continue;
    }
    ++used_count;
    if (used[block])
      found(absl::StrCat("block index ", block, " also used by ", block));
    used[block] = true;
  }
  if (used_count != allocated_count) {
    found(absl::StrCat("allocated blocks mismatch, is ", used_count,
                       ", should be ", allocated_count));
  }
  if (options.progress) options.progress(entries.size(), entries.size());
  return result;
}

}  // namespace spindle::vdi

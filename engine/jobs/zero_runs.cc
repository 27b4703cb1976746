#include "engine/jobs/zero_runs.h"

#include <algorithm>

#include "engine/checked_math.h"
#include "engine/io_vector.h"
#include "engine/sector.h"

namespace spindle {
namespace {

bool is_zero(absl::Span<const uint8_t> data) {
  return IoVector(const_cast<uint8_t*>(data.data()), data.size()).is_zero();
}

// Sectors of one kind, the end moved to where runs of zeroes may end.
ZeroRun aligned_run(absl::Span<const uint8_t> data, uint64_t offset,
                    uint64_t alignment) {
  const auto is_zero_at = [&data](uint64_t at) {
    return is_zero(data.subspan(at, kSectorSizeBytes));
  };
  ZeroRun run{.length = kSectorSizeBytes, .zero = is_zero_at(0)};
  while (run.length < data.size() && is_zero_at(run.length) == run.zero)
    run.length += kSectorSizeBytes;
  // Nothing follows: it ends where the data do.
  const uint64_t beyond = (offset + run.length) % alignment;
  if (run.length == data.size() || beyond == 0) return run;
  if (run.zero && run.length <= beyond) run.zero = false;
  run.length = run.zero ? run.length - beyond : run.length + alignment - beyond;
  run.length = std::min<uint64_t>(run.length, data.size());
  return run;
}

}  // namespace

ZeroRun first_run(absl::Span<const uint8_t> data, uint64_t offset,
                  const ZeroRunRules& rules) {
  const auto run_at = [&](uint64_t at) {
    return aligned_run(data.subspan(at), offset + at, rules.alignment_bytes);
  };
  ZeroRun run = run_at(0);
  if (run.zero) return run;
  const uint64_t least =
      std::min<uint64_t>(rules.min_zeroes_bytes, data.size());
  for (uint64_t at = run.length; at < data.size();) {
    const ZeroRun next = run_at(at);
    at += next.length;
    if (!next.zero) {
      run.length = at;
    } else if (next.length >= least) {
      break;
    }
  }
  return run;
}

}  // namespace spindle

// What blkdebug is told to do: options and configuration files of QEMU's form.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_FILTERS_BLKDEBUG_CONFIG_H_
#define SPINDLE_FORMATS_FILTERS_BLKDEBUG_CONFIG_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"
#include "formats/filters/blkdebug_rules.h"
#include "formats/filters/filter_options.h"

namespace spindle {

// In bytes; 0: as the driver below has it.
struct BlkdebugLimits {
  uint64_t align = 0;
  uint64_t max_transfer = 0;
  uint64_t opt_write_zero = 0;
  uint64_t max_write_zero = 0;
  uint64_t opt_discard = 0;
  uint64_t max_discard = 0;
};

struct BlkdebugConfig {
  std::vector<BlkdebugInjectError> errors;
  std::vector<BlkdebugSetState> set_states;
  BlkdebugLimits limits;
  std::optional<uint64_t> seed;
};

// Takes "inject-error.N.*" and "set-state.N.*", "align" and the other limits,
// "seed", and "config", whose file is read.
// Errors: kInvalidArgument names the option.
absl::StatusOr<BlkdebugConfig> take_blkdebug_options(FilterOptions* options);

// Adds the rules of a configuration file's `text`: sections [inject-error] and
// [set-state] with lines of the form name = "value", and # comments.
absl::Status parse_blkdebug_file(absl::string_view text,
                                 BlkdebugConfig* config);

// Errors: kInvalidArgument unless each limit is below 2 GiB and a multiple of
// what it must be, where `child_alignment` is what the driver below asks for.
absl::Status check_blkdebug_limits(const BlkdebugLimits& limits,
                                   uint64_t child_alignment);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_BLKDEBUG_CONFIG_H_

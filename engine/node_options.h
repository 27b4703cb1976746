// What every node of an image's description understands, whatever its driver,
// by QEMU's names: "read-only", "auto-read-only", "cache.direct",
// "cache.no-flush", "force-share", "discard", "detect-zeroes", "node-name".
//
// Thread safety: values and pure functions.
#ifndef SPINDLE_ENGINE_NODE_OPTIONS_H_
#define SPINDLE_ENGINE_NODE_OPTIONS_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"
#include "engine/request.h"

namespace spindle {

// What is not stated is as the node above has it.
struct NodeOptions {
  std::optional<bool> read_only;
  std::optional<bool> auto_read_only;
  std::optional<bool> direct;
  std::optional<bool> no_flush;
  std::optional<bool> force_share;
  std::optional<bool> discard;
  std::optional<DetectZeroes> detect_zeroes;

  // Puts what is stated into `options`.
  void apply(OpenOptions* options) const;
};

// Moves them out of `options`.
// Errors: kInvalidArgument for values that are none.
absl::StatusOr<NodeOptions> take_node_options(OptionMap* options);

// For a driver that has taken what it knows out of its options: an error if any
// are left.  `kind` is "format" or "protocol".
absl::Status refuse_left_options(absl::string_view kind,
                                 absl::string_view driver,
                                 const OptionMap& left);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_NODE_OPTIONS_H_

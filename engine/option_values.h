// The values of "name=value" options, read as QEMU's tools read them.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_OPTION_VALUES_H_
#define SPINDLE_ENGINE_OPTION_VALUES_H_

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"

namespace spindle {

// "65536", "64k", "1.5M", "0x200": a number of bytes, with the suffixes b, k,
// M, G, T, P and E in either case for powers of 1024.  Nothing if `text` is
// something else, or does not fit in 64 bits.
std::optional<uint64_t> parse_size(absl::string_view text);

// The value of the option `name`; the message names it.
// Errors: kInvalidArgument.
absl::StatusOr<uint64_t> parse_size_option(absl::string_view name,
                                           absl::string_view value);
// QEMU's <num>: decimal, "0x..." or "0..."; negative ones become large ones, as
// there.
absl::StatusOr<uint64_t> parse_number_option(absl::string_view name,
                                             absl::string_view value);
// "on", "yes", "true", "y", or "off", "no", "false", "n".
absl::StatusOr<bool> parse_bool_option(absl::string_view name,
                                       absl::string_view value);

// "off", "metadata", "falloc" or "full".  Nothing if it is something else.
std::optional<Preallocation> parse_preallocation(absl::string_view text);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_OPTION_VALUES_H_

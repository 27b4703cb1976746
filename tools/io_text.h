// How spindle-io talks: numbers in its commands, reports of what was moved,
// dumps.  Everything goes to standard output, as qemu-io's does.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TOOLS_IO_TEXT_H_
#define SPINDLE_TOOLS_IO_TEXT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "tools/cli_text.h"

namespace spindle {

// The longest request: what fits in an int of whole sectors.
inline constexpr uint64_t kMaxIoBytes = (uint64_t{1} << 31) - 512;

// An offset or a length, below 2^63.  Nothing, and a message, if it is none.
std::optional<uint64_t> read_number(absl::string_view text);
// What read_number() says of `text`, which `size` is not of.
void print_bad_number(const SizeArgument& size, absl::string_view text);
// A byte in C's notation.  Nothing, and a message, if it is none.
std::optional<uint8_t> read_pattern(const char* text);

// "512 bytes", "1.500 KiB": three decimals, unless they are zeroes.
std::string scaled_size(double bytes);

struct IoReport {
  const char* verb = "";  // "wrote"
  uint64_t offset = 0;
  uint64_t bytes = 0;
  absl::Duration elapsed;
  bool machine_readable = false;
};
void print_report(const IoReport& report);

// Sixteen bytes a line; `offset` is that of the first.
void print_dump(absl::Span<const uint8_t> bytes, uint64_t offset);

// What a failed request is called: a range beyond the end is an I/O error.
std::string failure_text(const absl::Status& status);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_TEXT_H_

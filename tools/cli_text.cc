#include "tools/cli_text.h"

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/errors.h"
#include "engine/option_values.h"
#include "tools/hints.h"

namespace spindle {
namespace {

// What hints send people to.
constexpr char kImageProgram[] = "spindle-img";

// Digits and perhaps one of parse_size()'s suffixes: a size, if too large a
// one.
bool is_number_with_suffix(absl::string_view text) {
  const bool is_hexadecimal = absl::StartsWithIgnoreCase(text, "0x");
  if (is_hexadecimal) text.remove_prefix(2);
  const absl::string_view suffixes = is_hexadecimal ? "kmgtp" : "bkmgtpe";
  if (!text.empty() &&
      absl::StrContains(suffixes, absl::ascii_tolower(text.back()))) {
    text.remove_suffix(1);
  }
  const absl::string_view digits =
      is_hexadecimal ? "0123456789abcdefABCDEF" : "0123456789";
  return !text.empty() && text.find_first_not_of(digits) == text.npos;
}

// As QEMU's tools do, also where something wrong follows.
void warn_of_hexadecimal_suffix(absl::string_view text) {
  absl::string_view rest = absl::StripLeadingAsciiWhitespace(text);
  if (!absl::StartsWithIgnoreCase(rest, "0x")) return;
  rest.remove_prefix(2);
  size_t count = 0;
  while (count < rest.size() && absl::ascii_isxdigit(rest[count])) ++count;
  if (count == 0 || count == rest.size() ||
      !absl::StrContains("kmgtp", absl::ascii_tolower(rest[count]))) {
    return;
  }
  warn(absl::StrCat("Using a multiplier suffix on hex numbers is deprecated: ",
                    text));
}

std::string& name_of_program() {
  static auto* const name = new std::string(kImageProgram);
  return *name;
}

}  // namespace

void set_program_name(absl::string_view argv0) {
  const size_t slash = argv0.rfind('/');
  name_of_program() =
      std::string(slash == argv0.npos ? argv0 : argv0.substr(slash + 1));
}

const std::string& program_name() { return name_of_program(); }

int fail_as(absl::string_view program, absl::string_view message) {
  std::fflush(stdout);
  std::fprintf(stderr, "%s\n", absl::StrCat(program, ": ", message).c_str());
  if (hints_are_wanted()) {
    const std::string hint = hint_for(message, kImageProgram);
    if (!hint.empty()) std::fprintf(stderr, "hint: %s\n", hint.c_str());
  }
  return 1;
}

int fail(absl::string_view message) { return fail_as(program_name(), message); }

void warn(absl::string_view message) {
  fail(absl::StrCat("warning: ", message));
}

int fail_to_open(absl::string_view filename, const absl::Status& status) {
  return fail(
      absl::StrCat("Could not open '", filename, "': ", qemu_words(status)));
}

std::string human_size(uint64_t bytes) {
  static constexpr absl::string_view kUnits[] = {"",   "Ki", "Mi", "Gi",
                                                 "Ti", "Pi", "Ei"};
  // The next unit begins at 1000 of the one before, so that no number has four
  // digits before its point.
  int exponent = 0;
  std::frexp(static_cast<double>(bytes) / (1000.0 / 1024.0), &exponent);
  const int unit = bytes == 0 ? 0 : (exponent - 1) / 10;
  const double scale = static_cast<double>(uint64_t{1} << (unit * 10));
  return absl::StrFormat("%0.3g %sB", static_cast<double>(bytes) / scale,
                         kUnits[unit]);
}

SizeArgument parse_size_argument(absl::string_view text) {
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  SizeArgument size;
  warn_of_hexadecimal_suffix(text);
  size.value = parse_size(text);
  if (size.value.has_value() && *size.value <= kMax) return size;
  size.too_large = size.value.has_value() || is_number_with_suffix(text);
  size.value.reset();
  return size;
}

absl::StatusOr<uint64_t> parse_size_named(absl::string_view what,
                                          absl::string_view text) {
  const SizeArgument size = parse_size_argument(text);
  if (size.value.has_value()) return *size.value;
  const std::string invalid = absl::StrCat("Invalid ", what, " specified. ");
  if (size.too_large) {
    return absl::InvalidArgumentError(
        absl::StrCat(invalid, "Must be between 0 and ",
                     std::numeric_limits<int64_t>::max(), "."));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      invalid, "You may use k, M, G, T, P or E suffixes for\n", program_name(),
      ": kilobytes, megabytes, gigabytes, terabytes, petabytes and "
      "exabytes."));
}

absl::StatusOr<uint64_t> parse_image_size(absl::string_view text) {
  return parse_size_named("image size", text);
}

absl::StatusOr<uint64_t> parse_size_parameter(absl::string_view name,
                                              absl::string_view text) {
  warn_of_hexadecimal_suffix(text);
  if (!parse_size(text).has_value() && is_number_with_suffix(text)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Value '", text, "' is out of range for parameter '", name, "'"));
  }
  return parse_size_option(name, text);
}

OptionList parse_option_list(absl::string_view text) {
  OptionList list;
  list.help = asks_for_help(text);
  for (OptionItem& item : split_option_list(text)) {
    if (item.short_form == "help" || item.short_form == "?") continue;
    list.options.emplace_back(std::move(item.name), std::move(item.value));
  }
  return list;
}

OpenOptions tool_open_options() {
  OpenOptions options;
  options.place_as_qemu = true;
  return options;
}

std::string describe_options(const std::vector<OptionHelp>& options) {
  std::string text;
  for (const OptionHelp& option : options) {
    absl::StrAppend(&text,
                    absl::StrFormat("  %-22s - %s\n",
                                    absl::StrCat(option.name, "=", option.type),
                                    option.help));
  }
  return text;
}

}  // namespace spindle

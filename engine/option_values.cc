#include "engine/option_values.h"

#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/checked_math.h"
#include "engine/errors.h"

namespace spindle {
namespace {

// The power of 1024 that `suffix` stands for.
std::optional<uint32_t> suffix_exponent(absl::string_view suffix) {
  if (suffix.empty()) return 0;
  if (suffix.size() != 1) return std::nullopt;
  constexpr absl::string_view kSuffixes = "bkmgtpe";
  const size_t found = kSuffixes.find(absl::ascii_tolower(suffix[0]));
  if (found == absl::string_view::npos) return std::nullopt;
  return static_cast<uint32_t>(found);
}

absl::string_view take_digits(absl::string_view* text) {
  size_t count = 0;
  while (count < text->size() && absl::ascii_isdigit((*text)[count])) ++count;
  const absl::string_view digits = text->substr(0, count);
  text->remove_prefix(count);
  return digits;
}

// Behind "0x".  Letters that are digits ('b', 'e') are no suffixes.
std::optional<uint64_t> parse_hexadecimal(absl::string_view text) {
  size_t count = 0;
  while (count < text.size() && absl::ascii_isxdigit(text[count])) ++count;
  const std::optional<uint32_t> exponent = suffix_exponent(text.substr(count));
  uint64_t value = 0;
  if (count == 0 || !exponent.has_value() ||
      !absl::SimpleHexAtoi(text.substr(0, count), &value)) {
    return std::nullopt;
  }
  return checked_multiply(value, uint64_t{1} << (10 * *exponent));
}

// What ".5" is of `unit`, rounded; digits beyond a double's precision are lost.
std::optional<uint64_t> parse_fraction(absl::string_view digits,
                                       uint64_t unit) {
  double fraction = 0;
  if (digits.empty()) return 0;
  if (!absl::SimpleAtod(absl::StrCat("0.", digits), &fraction))
    return std::nullopt;
  if (fraction == 0) return 0;
  if (unit == 1) return std::nullopt;  // half a byte
  return static_cast<uint64_t>(
      std::round(fraction * static_cast<double>(unit)));
}

}  // namespace

std::optional<uint64_t> parse_size(absl::string_view text) {
  text = absl::StripLeadingAsciiWhitespace(text);
  if (text.size() > 2 && text[0] == '0' &&
      absl::ascii_tolower(text[1]) == 'x') {
    return parse_hexadecimal(text.substr(2));
  }
  absl::ConsumePrefix(&text, "+");
  const absl::string_view whole_digits = take_digits(&text);
  uint64_t whole = 0;
  if (whole_digits.empty() || !absl::SimpleAtoi(whole_digits, &whole))
    return std::nullopt;
  absl::string_view fraction_digits;
  if (!text.empty() && text[0] == '.') {
    text.remove_prefix(1);
    fraction_digits = take_digits(&text);
  }
  const std::optional<uint32_t> exponent = suffix_exponent(text);
  if (!exponent.has_value()) return std::nullopt;
  const uint64_t unit = uint64_t{1} << (10 * *exponent);
  const std::optional<uint64_t> product = checked_multiply(whole, unit);
  const std::optional<uint64_t> fraction =
      parse_fraction(fraction_digits, unit);
  if (!product.has_value() || !fraction.has_value()) return std::nullopt;
  return checked_add(*product, *fraction);
}

absl::StatusOr<uint64_t> parse_size_option(absl::string_view name,
                                           absl::string_view value) {
  const std::optional<uint64_t> size = parse_size(value);
  if (size.has_value()) return *size;
  return absl::InvalidArgumentError(absl::StrCat(
      "Parameter '", name, "' expects a non-negative number below 2^64\n",
      "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, "
      "peta-\n",
      "and exabytes, respectively."));
}

absl::StatusOr<uint64_t> parse_number_option(absl::string_view name,
                                             absl::string_view value) {
  const std::string text(value);
  char* end = nullptr;
  errno = 0;
  const unsigned long long number = std::strtoull(text.c_str(), &end, 0);
  if (errno == 0 && end != text.c_str() && *end == '\0') return number;
  const std::string words =
      absl::StrCat("Parameter '", name, "' expects a number");
  return with_qemu_words(
      absl::InvalidArgumentError(absl::StrCat(words, ", not '", value, "'")),
      words);
}

absl::StatusOr<bool> parse_bool_option(absl::string_view name,
                                       absl::string_view value) {
  for (const absl::string_view yes : {"on", "yes", "true", "y"}) {
    if (value == yes) return true;
  }
  for (const absl::string_view no : {"off", "no", "false", "n"}) {
    if (value == no) return false;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("Parameter '", name, "' expects 'on' or 'off'"));
}

std::optional<Preallocation> parse_preallocation(absl::string_view text) {
  if (text == "off") return Preallocation::kOff;
  if (text == "metadata") return Preallocation::kMetadata;
  if (text == "falloc") return Preallocation::kFalloc;
  if (text == "full") return Preallocation::kFull;
  return std::nullopt;
}

}  // namespace spindle

#include "tools/io_text.h"

#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/errors.h"

namespace spindle {
namespace {

std::string clock_text(absl::Duration elapsed, bool always_whole) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  if (seconds < 60 && !always_whole)
    return absl::StrFormat("%05.2f sec", seconds);
  const auto whole = static_cast<uint64_t>(seconds);
  return absl::StrFormat("%d:%02d:%05.2f", whole / 3600, whole / 60 % 60,
                         seconds - static_cast<double>(whole / 60 * 60));
}

}  // namespace

std::optional<uint64_t> read_number(absl::string_view text) {
  const SizeArgument size = parse_size_argument(text);
  if (!size.value.has_value()) print_bad_number(size, text);
  return size.value;
}

void print_bad_number(const SizeArgument& size, absl::string_view text) {
  std::printf(size.too_large ? "Parsing error: argument too large -- %s\n"
                             : "Parsing error: non-numeric argument, or "
                               "extraneous/unrecognized suffix -- %s\n",
              std::string(text).c_str());
}

std::optional<uint8_t> read_pattern(const char* text) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 0);
  if (end != text && *end == '\0' && value >= 0 && value <= 255)
    return static_cast<uint8_t>(value);
  std::printf("%s is not a valid pattern byte\n", text);
  return std::nullopt;
}

std::string scaled_size(double bytes) {
  static constexpr absl::string_view kUnits[] = {"bytes", "KiB", "MiB", "GiB",
                                                 "TiB",   "PiB", "EiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  std::string number = absl::StrFormat("%.*f", unit == 0 ? 6 : 3, bytes);
  const size_t zeroes = number.find(".000");
  if (zeroes != number.npos) number.resize(zeroes);
  return absl::StrCat(number, " ", kUnits[unit]);
}

void print_report(const IoReport& report) {
  const double seconds = absl::ToDoubleSeconds(report.elapsed);
  const double bytes = static_cast<double>(report.bytes);
  if (report.machine_readable) {
    std::printf("%llu,1,%s,%.3f,%.3f\n",
                static_cast<unsigned long long>(report.bytes),
                clock_text(report.elapsed, /*always_whole=*/true).c_str(),
                bytes / seconds, 1 / seconds);
    return;
  }
  const auto count = static_cast<unsigned long long>(report.bytes);
  std::printf("%s %llu/%llu bytes at offset %llu\n", report.verb, count, count,
              static_cast<unsigned long long>(report.offset));
  std::printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n",
              scaled_size(bytes).c_str(),
              clock_text(report.elapsed, /*always_whole=*/false).c_str(),
              scaled_size(bytes / seconds).c_str(), 1 / seconds);
}

void print_dump(absl::Span<const uint8_t> bytes, uint64_t offset) {
  constexpr size_t kBytesPerLine = 16;
  while (!bytes.empty()) {
    const auto line = bytes.subspan(0, kBytesPerLine);
    std::string text =
        absl::StrFormat("%08x:  ", static_cast<unsigned long long>(offset));
    for (const uint8_t byte : line) absl::StrAppendFormat(&text, "%02x ", byte);
    text.push_back(' ');
    for (const uint8_t byte : line)
      text.push_back(std::isalnum(byte) ? static_cast<char>(byte) : '.');
    std::printf("%s\n", text.c_str());
    offset += line.size();
    bytes.remove_prefix(line.size());
  }
}

std::string failure_text(const absl::Status& status) {
  const bool is_outside =
      absl::IsOutOfRange(status) && !errno_of(status).has_value();
  return std::strerror(is_outside ? EIO : errno_for(status));
}

}  // namespace spindle

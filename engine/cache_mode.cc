#include "engine/cache_mode.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace spindle {
namespace {

struct NamedMode {
  CacheMode mode;
  absl::string_view name;
};

constexpr NamedMode kModes[] = {
    {CacheMode::kWriteback, "writeback"},
    {CacheMode::kWritethrough, "writethrough"},
    {CacheMode::kNone, "none"},
    {CacheMode::kDirectsync, "directsync"},
    {CacheMode::kUnsafe, "unsafe"},
};

}  // namespace

absl::StatusOr<CacheMode> parse_cache_mode(absl::string_view name) {
  for (const NamedMode& known : kModes) {
    if (known.name == name) return known.mode;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "cache mode '", name,
      "' is not one of writeback, writethrough, none, directsync, unsafe"));
}

absl::string_view cache_mode_name(CacheMode mode) {
  for (const NamedMode& known : kModes) {
    if (known.mode == mode) return known.name;
  }
  return "unknown";
}

void apply_cache_mode(CacheMode mode, OpenOptions* options) {
  options->direct = mode == CacheMode::kNone || mode == CacheMode::kDirectsync;
  options->no_flush = mode == CacheMode::kUnsafe;
}

}  // namespace spindle

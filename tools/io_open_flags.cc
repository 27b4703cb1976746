#include "tools/io_open_flags.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "tools/cli_text.h"
#include "tools/image_opts.h"

namespace spindle {
namespace {

std::string apply_aio(absl::string_view name, IoTarget* target) {
  if (name != "threads" && name != "native" && name != "io_uring")
    return absl::StrCat("Invalid aio option: ", name);
  target->native_aio = name == "native";
  return {};
}

std::string apply_cache(absl::string_view name, IoTarget* target) {
  const absl::StatusOr<CacheMode> mode = parse_io_cache_mode(name);
  if (!mode.ok()) return absl::StrCat("Invalid cache option: ", name);
  target->cache_mode = *mode;
  return {};
}

std::string apply_discard(absl::string_view name, IoTarget* target) {
  target->ignore_discards = name == "ignore" || name == "off";
  if (target->ignore_discards || name == "unmap" || name == "on") return {};
  return absl::StrCat("Invalid discard option: ", name);
}

}  // namespace

std::string apply_open_flag(int option, const char* value, IoTarget* target) {
  switch (option) {
    case 'r':
      target->read_only = true;
      return {};
    case 's':
      target->snapshot = true;
      return {};
    case 'C':
      target->copy_on_read = true;
      return {};
    case 'n':
      target->cache_mode = CacheMode::kNone;
      return {};
    case 'k':
      target->native_aio = true;
      return {};
    case 'U':
      target->force_share = true;
      return {};
    case 'i':
      return apply_aio(value, target);
    case 't':
      return apply_cache(value, target);
    case 'd':
      return apply_discard(value, target);
    default:
      return "unknown option";
  }
}

bool add_options(absl::string_view list, OptionMap* options) {
  OptionMap added =
      parse_image_opts(std::string(list), ShortForms::kWarnedOf, "");
  if (added.count("id") != 0) {
    fail("Invalid parameter 'id'");
    return false;
  }
  added.merge(*options);
  *options = std::move(added);
  return true;
}

absl::StatusOr<CacheMode> parse_io_cache_mode(absl::string_view name) {
  return parse_cache_mode(name == "off" ? "none" : name);
}

}  // namespace spindle

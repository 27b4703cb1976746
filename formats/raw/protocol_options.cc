#include "formats/raw/protocol_options.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/node_options.h"
#include "engine/option_values.h"

namespace spindle {
namespace {

std::optional<std::string> take(const std::string& name, OptionMap* options) {
  auto node = options->extract(name);
  if (node.empty()) return std::nullopt;
  return std::move(node.mapped());
}

absl::Status invalid_value(absl::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat("invalid parameter value: ", value));
}

absl::Status take_locking(OptionMap* own, bool* lock) {
  const std::optional<std::string> text = take("locking", own);
  if (!text.has_value() || *text == "auto") return absl::OkStatus();
  if (*text != "on" && *text != "off") return invalid_value(*text);
  *lock = *text == "on";
  return absl::OkStatus();
}

absl::Status take_aio(OptionMap* own, bool direct) {
  const std::optional<std::string> text = take("aio", own);
  if (!text.has_value() || *text == "threads" || *text == "io_uring")
    return absl::OkStatus();
  if (*text != "native") return invalid_value(*text);
  if (direct) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "aio=native was specified, but it requires cache.direct=on, which was "
      "not specified.");
}

absl::Status take_values(OptionMap* own) {
  if (const auto text = take("aio-max-batch", own)) {
    const auto value = parse_number_option("aio-max-batch", *text);
    if (!value.ok()) return value.status();
  }
  for (const char* name : {"drop-cache", "x-check-cache-dropped"}) {
    const std::optional<std::string> text = take(name, own);
    if (!text.has_value()) continue;
    const absl::StatusOr<bool> value = parse_bool_option(name, *text);
    if (!value.ok()) return value.status();
  }
  if (const auto text = take("pr-manager", own)) {
    return absl::InvalidArgumentError(
        absl::StrCat("No persistent reservation manager '", *text, "'"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OpenOptions> apply_protocol_options(absl::string_view protocol,
                                                   const OpenOptions& options) {
  OpenOptions result = options;
  OptionMap own;
  own.swap(result.driver_options);
  absl::Status status = take_locking(&own, &result.lock);
  if (status.ok()) status = take_aio(&own, options.direct);
  if (status.ok()) status = take_values(&own);
  if (status.ok()) status = refuse_left_options("protocol", protocol, own);
  if (!status.ok()) return status;
  return result;
}

}  // namespace spindle

#include "engine/node_options.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/option_values.h"
#include "engine/qemu_order.h"

namespace spindle {
namespace {

std::optional<std::string> take(const std::string& name, OptionMap* options) {
  auto node = options->extract(name);
  if (node.empty()) return std::nullopt;
  return std::move(node.mapped());
}

absl::Status take_bool(const std::string& name, OptionMap* options,
                       std::optional<bool>* value) {
  const std::optional<std::string> text = take(name, options);
  if (!text.has_value()) return absl::OkStatus();
  const absl::StatusOr<bool> parsed = parse_bool_option(name, *text);
  if (parsed.ok()) *value = *parsed;
  return parsed.status();
}

absl::Status take_discard(OptionMap* options, std::optional<bool>* value) {
  const std::optional<std::string> text = take("discard", options);
  if (!text.has_value()) return absl::OkStatus();
  *value = *text == "unmap" || *text == "on";
  if (**value || *text == "ignore" || *text == "off") return absl::OkStatus();
  return absl::InvalidArgumentError("Invalid discard option");
}

absl::Status take_detect_zeroes(OptionMap* options,
                                std::optional<DetectZeroes>* value) {
  const std::optional<std::string> text = take("detect-zeroes", options);
  if (!text.has_value()) return absl::OkStatus();
  if (*text == "off") {
    *value = DetectZeroes::kOff;
  } else if (*text == "on") {
    *value = DetectZeroes::kOn;
  } else if (*text == "unmap") {
    *value = DetectZeroes::kUnmap;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid parameter value: ", *text));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<NodeOptions> take_node_options(OptionMap* options) {
  NodeOptions result;
  // A name to refer to a node by: nothing here does.
  take("node-name", options);
  absl::Status status;
  const auto also = [&status](absl::Status next) {
    if (status.ok()) status = std::move(next);
  };
  also(take_bool("read-only", options, &result.read_only));
  also(take_bool("auto-read-only", options, &result.auto_read_only));
  also(take_bool("cache.direct", options, &result.direct));
  also(take_bool("cache.no-flush", options, &result.no_flush));
  also(take_bool("force-share", options, &result.force_share));
  also(take_discard(options, &result.discard));
  also(take_detect_zeroes(options, &result.detect_zeroes));
  if (!status.ok()) return status;
  return result;
}

void NodeOptions::apply(OpenOptions* options) const {
  options->read_only = read_only.value_or(options->read_only);
  options->auto_read_only = auto_read_only.value_or(options->auto_read_only);
  options->direct = direct.value_or(options->direct);
  options->no_flush = no_flush.value_or(options->no_flush);
  options->force_share = force_share.value_or(options->force_share);
  options->discard = discard.value_or(options->discard);
  options->detect_zeroes = detect_zeroes.value_or(options->detect_zeroes);
}

absl::Status refuse_left_options(absl::string_view kind,
                                 absl::string_view driver,
                                 const OptionMap& left) {
  const auto first = std::min_element(left.begin(), left.end(),
                                      [](const auto& a, const auto& b) {
                                        return QemuOrder()(a.first, b.first);
                                      });
  if (first == left.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("Block ", kind, " '", driver, "' ",
                   kind == "format" ? "does not" : "doesn't",
                   " support the option '", first->first, "'"));
}

}  // namespace spindle

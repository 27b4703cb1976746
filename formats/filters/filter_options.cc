#include "formats/filters/filter_options.h"

#include <utility>

#include "engine/node_options.h"
#include "engine/option_values.h"

namespace spindle {

FilterOptions::FilterOptions(absl::string_view driver, OptionMap options)
    : driver_(driver), options_(std::move(options)) {}

void FilterOptions::note(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

std::optional<std::string> FilterOptions::take_text(const std::string& name) {
  const auto found = options_.find(name);
  if (found == options_.end()) return std::nullopt;
  std::string text = std::move(found->second);
  options_.erase(found);
  return text;
}

void FilterOptions::take_size(const std::string& name, uint64_t* value) {
  const std::optional<std::string> text = take_text(name);
  if (!text.has_value()) return;
  const absl::StatusOr<uint64_t> size = parse_size_option(name, *text);
  note(size.status());
  if (size.ok()) *value = *size;
}

void FilterOptions::take_number(const std::string& name, uint64_t* value) {
  const std::optional<std::string> text = take_text(name);
  if (!text.has_value()) return;
  const absl::StatusOr<uint64_t> number = parse_number_option(name, *text);
  note(number.status());
  if (number.ok()) *value = *number;
}

void FilterOptions::take_bool(const std::string& name, bool* value) {
  const std::optional<std::string> text = take_text(name);
  if (!text.has_value()) return;
  const absl::StatusOr<bool> flag = parse_bool_option(name, *text);
  note(flag.status());
  if (flag.ok()) *value = *flag;
}

absl::Status FilterOptions::finish() const {
  if (!status_.ok() || options_.empty()) return status_;
  return refuse_left_options("format", driver_, options_);
}

}  // namespace spindle

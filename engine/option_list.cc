#include "engine/option_list.h"

#include <cstddef>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"

namespace spindle {
namespace {

// Up to a comma that stands alone, which goes too.
std::string take_item(absl::string_view* text) {
  std::string item;
  while (!text->empty()) {
    const char c = text->front();
    text->remove_prefix(1);
    if (c == ',') {
      if (text->empty() || text->front() != ',') break;
      text->remove_prefix(1);
    }
    item.push_back(c);
  }
  return item;
}

}  // namespace

std::vector<OptionItem> split_option_list(absl::string_view text,
                                          absl::string_view implied_name) {
  std::vector<OptionItem> items;
  for (bool is_first = true; !text.empty(); is_first = false) {
    std::string item = take_item(&text);
    const size_t equals = item.find('=');
    if (equals != std::string::npos) {
      items.push_back({item.substr(0, equals), item.substr(equals + 1), {}});
    } else if (is_first && !implied_name.empty()) {
      items.push_back({std::string(implied_name), std::move(item), {}});
    } else if (absl::StartsWith(item, "no")) {
      items.push_back({item.substr(2), "off", item});
    } else {
      items.push_back({item, "on", item});
    }
  }
  return items;
}

bool asks_for_help(absl::string_view text) {
  while (!text.empty()) {
    const std::string item = take_item(&text);
    if (item == "help" || item == "?") return true;
  }
  return false;
}

std::string escape_option_value(absl::string_view value) {
  return absl::StrReplaceAll(value, {{",", ",,"}});
}

}  // namespace spindle

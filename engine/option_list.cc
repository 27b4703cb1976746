#include "engine/option_list.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"

namespace spindle {
namespace {

// Up to a comma that stands alone, which goes too.
std::string take_value(absl::string_view* text) {
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
    const size_t name_end = std::min(text.find_first_of("=,"), text.size());
    const std::string name(text.substr(0, name_end));
    if (name_end < text.size() && text[name_end] == '=') {
      text.remove_prefix(name_end + 1);
      items.push_back({name, take_value(&text), {}, false});
    } else if (is_first && !implied_name.empty()) {
      items.push_back(
          {std::string(implied_name), take_value(&text), {}, false});
    } else {
      text.remove_prefix(std::min(name_end + 1, text.size()));
      const bool is_off = absl::StartsWith(name, "no");
      items.push_back({is_off ? name.substr(2) : name, is_off ? "off" : "on",
                       name, /*is_short=*/true});
    }
  }
  return items;
}

bool asks_for_help(absl::string_view text) {
  const std::vector<OptionItem> items = split_option_list(text);
  return std::any_of(items.begin(), items.end(), [](const OptionItem& item) {
    return item.short_form == "help" || item.short_form == "?";
  });
}

std::string escape_option_value(absl::string_view value) {
  return absl::StrReplaceAll(value, {{",", ",,"}});
}

}  // namespace spindle

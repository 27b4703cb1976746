#include "tests/support/svg.h"

#include <cmath>
#include <cstdlib>
#include <regex>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"

namespace spindle::testing {
namespace {

// The value of `name="..."` in a tag; empty if it has none.
std::string attribute(const std::string& tag, const std::string& name) {
  const std::string before = " " + name + "=\"";
  const size_t at = tag.find(before);
  if (at == std::string::npos) return {};
  const size_t begin = at + before.size();
  return tag.substr(begin, tag.find('"', begin) - begin);
}

double number(const std::string& text) {
  return std::strtod(text.c_str(), nullptr);
}

// "fill:rgb(100%,0%,0%)" in a style; empty if it has none.
std::string fill_colour(const std::string& style) {
  static const auto* const pattern =
      new std::regex("fill:rgb\\(([0-9.]+)%,([0-9.]+)%,([0-9.]+)%\\)");
  std::smatch match;
  if (!std::regex_search(style, match, *pattern)) return {};
  const auto part = [&match](size_t index) {
    return static_cast<int>(std::lround(number(match[index]) * 255 / 100));
  };
  return absl::StrFormat("#%02x%02x%02x", part(1), part(2), part(3));
}

}  // namespace

Svg parse_svg(const std::string& text) {
  static const auto* const four_corners = new std::regex(
      "M ([0-9.-]+) ([0-9.-]+) L ([0-9.-]+) [0-9.-]+ L [0-9.-]+ ([0-9.-]+) "
      "L [0-9.-]+ [0-9.-]+ Z.*");
  Svg svg;
  for (size_t at = 0; (at = text.find('<', at)) != std::string::npos;) {
    const size_t end = text.find('>', at);
    const std::string tag = text.substr(at, end - at);
    at = end;
    const std::string style = attribute(tag, "style");
    if (absl::StartsWith(tag, "<svg")) {
      svg.width = number(attribute(tag, "width"));
      svg.height = number(attribute(tag, "height"));
    } else if (absl::StartsWith(tag, "<use")) {
      ++svg.letter_count;
    } else if (absl::StartsWith(tag, "<rect")) {
      svg.rectangles.push_back({fill_colour(style), number(attribute(tag, "x")),
                                number(attribute(tag, "y")),
                                number(attribute(tag, "width")),
                                number(attribute(tag, "height"))});
    } else if (absl::StartsWith(tag, "<path") &&
               absl::StrContains(style, "stroke:rgb")) {
      ++svg.line_count;
    } else if (absl::StartsWith(tag, "<path") && !fill_colour(style).empty()) {
      const std::string path = attribute(tag, "d");
      std::smatch match;
      if (!std::regex_match(path, match, *four_corners)) continue;
      const double x = number(match[1]);
      const double y = number(match[2]);
      svg.rectangles.push_back({fill_colour(style), x, y, number(match[3]) - x,
                                number(match[4]) - y});
    }
  }
  return svg;
}

}  // namespace spindle::testing

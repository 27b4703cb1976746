// What stands in an SVG file that the cairo library wrote.
//
// Thread safety: values and a function without state.
#ifndef SPINDLE_TESTS_SUPPORT_SVG_H_
#define SPINDLE_TESTS_SUPPORT_SVG_H_

#include <cstddef>
#include <string>
#include <vector>

namespace spindle::testing {

struct SvgRectangle {
  std::string colour;  // "#rrggbb"
  double x = 0;
  double y = 0;
  double width = 0;
  double height = 0;
};

struct Svg {
  double width = 0;
  double height = 0;
  std::vector<SvgRectangle> rectangles;  // in the order of the file
  size_t line_count = 0;
  size_t letter_count = 0;
};

Svg parse_svg(const std::string& text);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_SVG_H_

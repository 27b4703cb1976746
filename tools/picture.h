// A picture of rectangles, lines and words, which becomes an SVG or a PNG file.
//
// Coordinates are pixels from the upper left corner.  The cairo library draws;
// it is loaded when it is first needed, so that a program that draws nothing
// starts without it, and runs where it is not installed.
//
// Thread safety: none.
#ifndef SPINDLE_TOOLS_PICTURE_H_
#define SPINDLE_TOOLS_PICTURE_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace spindle {

struct Colour {
  uint8_t red = 0;
  uint8_t green = 0;
  uint8_t blue = 0;
};

// Which part of a text is at its place.
enum class Anchor { kStart, kMiddle, kEnd };

struct TextStyle {
  Anchor anchor = Anchor::kStart;
  // A longer text loses its beginning; 0: as long as it is.
  double max_width = 0;
};

class Picture {
 public:
  static constexpr double kLetterHeight = 12;

  Picture(int width, int height) : width_(width), height_(height) {}

  void add_rectangle(double x, double y, double width, double height,
                     Colour colour);
  void add_line(double x1, double y1, double x2, double y2, Colour colour,
                double width = 1);
  // `y` is that of the line it stands on.
  void add_text(double x, double y, std::string text,
                const TextStyle& style = {});

  // The bytes of a file.
  // Errors: kUnavailable without cairo; kInternal, in cairo's words, for what
  // it cannot do (too large a picture).
  absl::StatusOr<std::string> to_svg() const;
  absl::StatusOr<std::string> to_png() const;

  // As the end of `path` says: ".svg" or ".png".  A file that is there is
  // overwritten if it is empty or a picture.
  // Errors: those above, those of check_path() and of the file system.
  absl::Status save(const std::string& path) const;
  // Errors: kInvalidArgument for a name with another end, kAlreadyExists for a
  // file that is no picture.
  static absl::Status check_path(const std::string& path);

 private:
  struct Rectangle {
    double x, y, width, height;
    Colour colour;
  };
  struct Line {
    double x1, y1, x2, y2;
    Colour colour;
    double width;
  };
  struct Text {
    double x, y;
    std::string text;
    TextStyle style;
  };
  class Painter;

  const int width_;
  const int height_;
  std::vector<std::variant<Rectangle, Line, Text>> shapes_;  // back to front
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_PICTURE_H_

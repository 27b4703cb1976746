#include "tools/sweep_picture.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace spindle {
namespace {

constexpr Colour kColours[] = {
    {0x1f, 0x77, 0xb4}, {0x2c, 0xa0, 0x2c}, {0xff, 0x7f, 0x0e},
    {0x94, 0x67, 0xbd}, {0xd6, 0x27, 0x28}, {0x8c, 0x56, 0x4b},
};
constexpr Colour kGrid = {0xe0, 0xe0, 0xe0};
constexpr Colour kInk = {};

constexpr double kPanelWidth = 420;
constexpr double kPanelHeight = 260;
constexpr double kLeft = 90;
constexpr double kTop = 60;
constexpr double kBetween = 110;
constexpr int kWidth =
    static_cast<int>(kLeft + 2 * kPanelWidth + kBetween + 30);
constexpr int kLegendTop = static_cast<int>(kTop + kPanelHeight + 76);

using Value = std::function<double(const SweepPoint&)>;

Colour colour_of(size_t line) { return kColours[line % std::size(kColours)]; }

// 1, 2 or 5 times a power of ten, and at least `value`.
double round_up(double value) {
  if (value <= 0) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    if (factor * power >= value) return factor * power;
  }
  return 10 * power;
}

std::string to_words(double value) {
  if (value >= 1e6) return absl::StrFormat("%gM", value / 1e6);
  if (value >= 1e3) return absl::StrFormat("%gk", value / 1e3);
  return absl::StrFormat("%g", value);
}

enum class Steps { kEven, kPowersOfTen };

// A diagram: values upwards, queue depths to the right (as powers of two).
class Panel {
 public:
  Panel(double left, const std::vector<SweepLine>& lines, Value value,
        Steps steps, Picture* picture)
      : left_(left),
        lines_(lines),
        value_(std::move(value)),
        steps_(steps),
        picture_(*picture) {
    double least = std::numeric_limits<double>::max();
    double most = 0;
    for (const SweepLine& line : lines) {
      for (const SweepPoint& point : line.points) {
        least = std::min(least, value_(point));
        most = std::max(most, value_(point));
        first_ = std::min(first_, exponent(point));
        last_ = std::max(last_, exponent(point));
        depths_.insert(point.depth);
      }
    }
    if (depths_.empty()) least = most = 1;  // an empty diagram
    if (steps_ == Steps::kEven) {
      top_value_ = round_up(most);
    } else {
      bottom_value_ = std::pow(10, std::floor(std::log10(least)));
      top_value_ = std::max(std::pow(10, std::ceil(std::log10(most))),
                            10 * bottom_value_);
    }
  }

  void draw(const std::string& title) {
    picture_.add_text(left_, kTop - 12, title);
    draw_axes();
    for (size_t i = 0; i < lines_.size(); ++i) draw_line(i);
  }

 private:
  static double exponent(const SweepPoint& point) {
    return std::log2(static_cast<double>(point.depth));
  }
  double x_of(double depth_exponent) const {
    const double range = std::max(last_ - first_, 1.0);
    return left_ + kPanelWidth * (depth_exponent - first_) / range;
  }
  double y_of(double value) const {
    const double part = steps_ == Steps::kEven
                            ? value / top_value_
                            : std::log10(value / bottom_value_) /
                                  std::log10(top_value_ / bottom_value_);
    return kTop + kPanelHeight * (1 - part);
  }

  void draw_tick(double value) {
    const double y = y_of(value);
    picture_.add_line(left_, y, left_ + kPanelWidth, y, kGrid);
    picture_.add_text(left_ - 8, y + 4, to_words(value),
                      {.anchor = Anchor::kEnd});
  }

  void draw_axes() {
    constexpr int kTicks = 5;
    const double bottom = kTop + kPanelHeight;
    if (steps_ == Steps::kEven) {
      for (int i = 0; i <= kTicks; ++i) draw_tick(top_value_ * i / kTicks);
    } else {
      for (double value = bottom_value_; value < top_value_ * 2; value *= 10)
        draw_tick(value);
    }
    for (const size_t depth : depths_) {
      const double x = x_of(std::log2(static_cast<double>(depth)));
      picture_.add_line(x, kTop, x, bottom, kGrid);
      picture_.add_text(x, bottom + 18, absl::StrCat(depth),
                        {.anchor = Anchor::kMiddle});
    }
    picture_.add_line(left_, bottom, left_ + kPanelWidth, bottom, kInk);
    picture_.add_line(left_, kTop, left_, bottom, kInk);
    picture_.add_text(left_ + kPanelWidth / 2, bottom + 36, "queue depth",
                      {.anchor = Anchor::kMiddle});
  }

  void draw_line(size_t index) {
    constexpr double kDot = 6;
    constexpr double kStroke = 2;
    const std::vector<SweepPoint>& points = lines_[index].points;
    const Colour colour = colour_of(index);
    for (size_t i = 0; i < points.size(); ++i) {
      const double x = x_of(exponent(points[i]));
      const double y = y_of(value_(points[i]));
      picture_.add_rectangle(x - kDot / 2, y - kDot / 2, kDot, kDot, colour);
      if (i == 0) continue;
      picture_.add_line(x_of(exponent(points[i - 1])),
                        y_of(value_(points[i - 1])), x, y, colour, kStroke);
    }
  }

  const double left_;
  const std::vector<SweepLine>& lines_;
  const Value value_;
  const Steps steps_;
  Picture& picture_;
  double bottom_value_ = 0;
  double top_value_ = 0;
  // Of all depths; their exponents.
  std::set<size_t> depths_;
  double first_ = std::numeric_limits<double>::max();
  double last_ = 0;
};

}  // namespace

Picture draw_sweep(const std::string& title,
                   const std::vector<SweepLine>& lines) {
  Picture picture(kWidth,
                  kLegendTop + 20 * static_cast<int>(lines.size()) + 20);
  picture.add_text(kLeft, 24, title);
  Panel(
      kLeft, lines,
      [](const SweepPoint& point) { return point.operations_per_second; },
      Steps::kEven, &picture)
      .draw("requests per second");
  Panel(
      kLeft + kPanelWidth + kBetween, lines,
      [](const SweepPoint& point) { return point.mean_latency_microseconds(); },
      Steps::kPowersOfTen, &picture)
      .draw("mean latency in microseconds");
  for (size_t i = 0; i < lines.size(); ++i) {
    const double y = kLegendTop + 20.0 * static_cast<double>(i);
    picture.add_rectangle(kLeft, y - 8, 10, 10, colour_of(i));
    picture.add_text(kLeft + 18, y + 1, lines[i].name);
  }
  return picture;
}

}  // namespace spindle

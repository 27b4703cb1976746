#include "tools/map_picture.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "tools/cli_text.h"

namespace spindle {
namespace {

enum Kind { kData, kCompressed, kZero, kHole, kKindCount };

struct Style {
  const char* name;
  const char* meaning;
  Colour colour;
};
constexpr std::array<Style, kKindCount> kStyles = {{
    {"data", "", {0x1f, 0x77, 0xb4}},
    {"compressed", "", {0x2c, 0xa0, 0x2c}},
    {"zero", ": reads as zeroes", {0xff, 0xbb, 0x78}},
    {"hole", ": not allocated in this layer", {0xe0, 0xe0, 0xe0}},
}};

constexpr int kMargin = 20;
constexpr int kColumns = 1024;
constexpr int kWidth = kColumns + 2 * kMargin;
constexpr int kStripHeight = 40;
constexpr int kLeastHeight = 4;   // of a kind that a column has
constexpr int kLayerHeight = 72;  // with its name
constexpr int kLegendHeight = 54;
constexpr int kAxisHeight = 52;

// How many bytes of each kind there are.
using Shares = std::array<uint64_t, kKindCount>;

Kind kind_of(const BlockStatus& status) {
  if (!status.allocated) return kHole;
  if (status.zero) return kZero;
  if (!status.data) return kHole;
  return status.compressed ? kCompressed : kData;
}

struct Layer {
  std::string name;
  std::vector<Shares> columns = std::vector<Shares>(kColumns);
  Shares sum = {};
};

// Which bytes of a disk are drawn, and how many are in a column.
class Scale {
 public:
  explicit Scale(ByteRange range)
      : range_(range),
        column_bytes_(
            std::max<uint64_t>(divide_round_up(range.length, kColumns), 1)) {}

  const ByteRange& range() const { return range_; }
  size_t column_at(uint64_t offset) const {
    return (offset - range_.offset) / column_bytes_;
  }
  // Of columns from this one on: where the first byte is, and its x.
  uint64_t start_of(size_t column) const {
    return range_.offset + std::min(range_.length, column * column_bytes_);
  }
  double x_of(size_t column) const {
    if (range_.length == 0) return kMargin;
    return kMargin + kColumns *
                         static_cast<double>(start_of(column) - range_.offset) /
                         static_cast<double>(range_.length);
  }

 private:
  const ByteRange range_;
  const uint64_t column_bytes_;
};

void add(ByteRange part, const Scale& scale, Kind kind, Layer* layer) {
  layer->sum[kind] += part.length;
  while (!part.empty()) {
    const size_t column = scale.column_at(part.offset);
    const uint64_t bytes =
        std::min(part.length, scale.start_of(column + 1) - part.offset);
    layer->columns[column][kind] += bytes;
    part = {part.offset + bytes, part.length - bytes};
  }
}

absl::StatusOr<Layer> look_at(BlockDriver& driver, const Scale& scale) {
  Layer layer;
  layer.name = absl::StrCat(driver.filename(), " (", driver.format_name(), ", ",
                            human_size(driver.length_bytes()), ")");
  const bool knows = driver.capabilities().has(Capability::kBlockStatus);
  // A backing file may be shorter.
  const uint64_t end = std::min(driver.length_bytes(), scale.range().end());
  for (uint64_t offset = scale.range().offset; offset < end;) {
    BlockStatus status;
    status.length = end - offset;
    status.allocated = true;
    status.data = true;
    if (knows) {
      absl::StatusOr<BlockStatus> found = driver.block_status(
          {offset, end - offset}, BlockStatusScope::kThisLayer);
      if (!found.ok()) return found.status();
      status = *found;
    }
    add({offset, status.length}, scale, kind_of(status), &layer);
    offset += status.length;
  }
  return layer;
}

// How high each kind stands in a column: as its share, but never too low to be
// seen.
std::array<double, kKindCount> heights_of(const Shares& shares) {
  std::array<double, kKindCount> heights = {};
  double sum = 0;
  int kinds = 0;
  for (const uint64_t share : shares) {
    sum += static_cast<double>(share);
    kinds += share != 0 ? 1 : 0;
  }
  for (size_t kind = 0; kind < kKindCount; ++kind) {
    if (shares[kind] == 0) continue;
    heights[kind] = kLeastHeight + (kStripHeight - kinds * kLeastHeight) *
                                       static_cast<double>(shares[kind]) / sum;
  }
  return heights;
}

// The kinds of each column one above the other, in the order of the legend;
// neighbours that are alike become one rectangle.
void draw_strip(const Layer& layer, const Scale& scale, double top,
                Picture* picture) {
  for (size_t first = 0; first < layer.columns.size();) {
    const auto heights = heights_of(layer.columns[first]);
    size_t end = first + 1;
    while (end < layer.columns.size() &&
           heights_of(layer.columns[end]) == heights) {
      ++end;
    }
    const double x = scale.x_of(first);
    double y = top;
    for (size_t kind = 0; kind < kKindCount; ++kind) {
      if (heights[kind] == 0) continue;
      picture->add_rectangle(x, y, scale.x_of(end) - x, heights[kind],
                             kStyles[kind].colour);
      y += heights[kind];
    }
    first = end;
  }
}

void draw_layer(const Layer& layer, const Scale& scale, double top,
                Picture* picture) {
  constexpr double kNameWidth = 0.55 * kColumns;
  std::string sums;
  for (size_t kind = 0; kind < kKindCount; ++kind) {
    if (layer.sum[kind] == 0) continue;
    absl::StrAppend(&sums, sums.empty() ? "" : ", ", kStyles[kind].name, " ",
                    human_size(layer.sum[kind]));
  }
  const double line = top + Picture::kLetterHeight;
  picture->add_text(kMargin, line, layer.name, {.max_width = kNameWidth});
  picture->add_text(kMargin + kColumns, line, sums, {.anchor = Anchor::kEnd});
  draw_strip(layer, scale, line + 6, picture);
}

void draw_legend(double top, Picture* picture) {
  constexpr double kDistances[kKindCount] = {80, 120, 170, 0};
  double x = kMargin;
  for (size_t kind = 0; kind < kKindCount; ++kind) {
    const Style& style = kStyles[kind];
    picture->add_rectangle(x, top, Picture::kLetterHeight,
                           Picture::kLetterHeight, style.colour);
    picture->add_text(x + 18, top + 10,
                      absl::StrCat(style.name, style.meaning));
    x += kDistances[kind];
  }
}

void draw_axis(ByteRange range, double top, Picture* picture) {
  constexpr int kTicks = 4;
  picture->add_line(kMargin, top, kMargin + kColumns, top, {});
  for (int i = 0; i <= kTicks; ++i) {
    const double x = kMargin + static_cast<double>(kColumns) * i / kTicks;
    const Anchor anchor = i == 0        ? Anchor::kStart
                          : i == kTicks ? Anchor::kEnd
                                        : Anchor::kMiddle;
    picture->add_line(x, top, x, top + 5, {});
    const double part = static_cast<double>(range.length) * i / kTicks;
    picture->add_text(x, top + 8 + Picture::kLetterHeight,
                      human_size(range.offset + static_cast<uint64_t>(part)),
                      {.anchor = anchor});
  }
  picture->add_text(kMargin + kColumns / 2.0,
                    top + 12 + 2 * Picture::kLetterHeight, "offset on the disk",
                    {.anchor = Anchor::kMiddle});
}

}  // namespace

absl::StatusOr<Picture> draw_map(BlockDriver& image, ByteRange range) {
  const Scale scale(range);
  std::vector<Layer> layers;
  std::shared_ptr<BlockDriver> below;
  for (BlockDriver* driver = &image; driver != nullptr; driver = below.get()) {
    absl::StatusOr<Layer> layer = look_at(*driver, scale);
    if (!layer.ok()) return layer.status();
    layers.push_back(*std::move(layer));
    below = driver->backing();
  }
  const int height = kLegendHeight + kAxisHeight +
                     kLayerHeight * static_cast<int>(layers.size());
  Picture picture(kWidth, height);
  draw_legend(kMargin, &picture);
  double top = kLegendHeight;
  for (const Layer& layer : layers) {
    draw_layer(layer, scale, top, &picture);
    top += kLayerHeight;
  }
  draw_axis(range, top, &picture);
  return picture;
}

}  // namespace spindle

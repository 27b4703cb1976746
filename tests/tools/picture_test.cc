// Pictures as SVG and PNG.
#include "tools/picture.h"

#include <cairo/cairo.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/svg.h"
#include "tools/sweep_picture.h"

// What it looks up about fonts, fontconfig keeps until the process ends.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libfontconfig";
}

namespace spindle {
namespace {

using ::spindle::testing::parse_svg;
using ::spindle::testing::Svg;
using ::spindle::testing::temporary_path;

constexpr Colour kRed = {0xff, 0, 0};
constexpr Colour kBlue = {0, 0, 0xff};

Picture small_picture() {
  Picture picture(100, 50);
  picture.add_rectangle(10, 5, 20, 30, kRed);
  picture.add_rectangle(30, 5, 40.5, 30, kBlue);
  picture.add_line(0, 49, 100, 49, kBlue);
  picture.add_text(20, 45, "text");
  return picture;
}

TEST(PictureTest, SvgHasWhatWasDrawn) {
  const auto bytes = small_picture().to_svg();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const Svg svg = parse_svg(*bytes);
  EXPECT_EQ(svg.width, 100);
  EXPECT_EQ(svg.height, 50);
  ASSERT_EQ(svg.rectangles.size(), 3u);  // the first is the paper
  EXPECT_EQ(svg.rectangles[0].colour, "#ffffff");
  const auto& red = svg.rectangles[1];
  EXPECT_EQ(red.colour, "#ff0000");
  EXPECT_EQ(red.x, 10);
  EXPECT_EQ(red.y, 5);
  EXPECT_EQ(red.width, 20);
  EXPECT_EQ(red.height, 30);
  EXPECT_EQ(svg.rectangles[2].colour, "#0000ff");
  EXPECT_EQ(svg.rectangles[2].width, 40.5);
  EXPECT_EQ(svg.line_count, 1u);
  EXPECT_EQ(svg.letter_count, 4u);
}

TEST(PictureTest, PngHasTheSizeAndTheColours) {
  const auto bytes = small_picture().to_png();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const std::string path = temporary_path("small.png");
  std::ofstream(path, std::ios::binary) << *bytes;
  const std::unique_ptr<cairo_surface_t, void (*)(cairo_surface_t*)> surface(
      ::cairo_image_surface_create_from_png(path.c_str()),
      ::cairo_surface_destroy);
  ::unlink(path.c_str());
  ASSERT_EQ(::cairo_surface_status(surface.get()), CAIRO_STATUS_SUCCESS);
  EXPECT_EQ(::cairo_image_surface_get_width(surface.get()), 100);
  EXPECT_EQ(::cairo_image_surface_get_height(surface.get()), 50);
  const auto pixel = [&](int x, int y) {
    const unsigned char* const at =
        ::cairo_image_surface_get_data(surface.get()) +
        y * ::cairo_image_surface_get_stride(surface.get()) + x * 4;
    return *reinterpret_cast<const uint32_t*>(at) & 0xffffff;
  };
  EXPECT_EQ(pixel(5, 5), 0xffffffu);
  EXPECT_EQ(pixel(10, 5), 0xff0000u);
  EXPECT_EQ(pixel(29, 34), 0xff0000u);
  EXPECT_EQ(pixel(30, 34), 0x0000ffu);
  EXPECT_EQ(pixel(30, 35), 0xffffffu);
  EXPECT_EQ(pixel(99, 49), 0x0000ffu);
}

TEST(PictureTest, TextLosesItsBeginningIfItIsTooLong) {
  const auto letters = [](const std::string& text, double max_width) {
    Picture picture(400, 20);
    picture.add_text(0, 15, text, {.max_width = max_width});
    const auto bytes = picture.to_svg();
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    return bytes.ok() ? parse_svg(*bytes).letter_count : 0;
  };
  const std::string text(40, 'x');
  EXPECT_EQ(letters(text, 0), 40u);
  EXPECT_EQ(letters(text, 400), 40u);
  EXPECT_LT(letters(text, 100), 20u);
  EXPECT_GT(letters(text, 100), 5u);
  // Bytes that are no text, and none at all.
  EXPECT_EQ(letters("a\xff\x01z", 0), 4u);
  EXPECT_EQ(letters("", 10), 0u);
}

TEST(PictureTest, OverwritesPicturesOnly) {
  const auto write = [](const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  };
  const std::string folder = temporary_path("files");
  std::filesystem::create_directory(folder);
  const std::string png = folder + "/a.png";
  const std::string svg = folder + "/a.svg";
  const Picture picture = small_picture();
  EXPECT_TRUE(picture.save(png).ok());
  EXPECT_TRUE(picture.save(svg).ok());
  EXPECT_TRUE(picture.save(png).ok());
  EXPECT_TRUE(picture.save(svg).ok());
  write(png, "");
  EXPECT_TRUE(picture.save(png).ok());
  write(png, "QFI\xfb, and what somebody needs");
  EXPECT_TRUE(absl::IsAlreadyExists(picture.save(png)));
  EXPECT_TRUE(absl::IsInvalidArgument(picture.save(folder + "/a.jpg")));
  EXPECT_TRUE(absl::IsNotFound(picture.save(folder + "/none/a.png")));
  std::filesystem::remove_all(folder);
}

TEST(PictureTest, TooLargeAPictureIsAnError) {
  const auto bytes = Picture(100, 1 << 20).to_png();
  ASSERT_FALSE(bytes.ok());
  EXPECT_TRUE(absl::StrContains(bytes.status().message(), "cairo: "));
}

TEST(SweepPictureTest, HasALineForEachThatHasPoints) {
  const auto bytes =
      draw_sweep("title", {{"1 thread", {{1, 1000}, {8, 5000}, {32, 9000}}},
                           {"qemu-img", {{1, 500}, {8, 4000}, {32, 4500}}},
                           {"(not measured)", {}}})
          .to_svg();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const Svg svg = parse_svg(*bytes);
  // In either diagram a dot for each point, and in the legend one for each
  // line; the throughput comes first.
  std::vector<testing::SvgRectangle> dots;
  for (const auto& rectangle : svg.rectangles) {
    if (rectangle.colour == "#1f77b4") dots.push_back(rectangle);
  }
  ASSERT_EQ(dots.size(), 7u);
  EXPECT_GT(dots[0].y, dots[1].y);
  EXPECT_GT(dots[1].y, dots[2].y);
  EXPECT_LT(dots[0].x, dots[1].x);
  // As powers of two: 1 to 8 is three steps, 8 to 32 two.
  EXPECT_NEAR((dots[1].x - dots[0].x) * 2, (dots[2].x - dots[1].x) * 3, 0.1);
  // 1000, 5000 and 9000 are as far from each other.
  EXPECT_NEAR(dots[0].y - dots[1].y, dots[1].y - dots[2].y, 0.1);
}

TEST(SweepPictureTest, NothingMeasuredIsAnEmptyPicture) {
  EXPECT_TRUE(draw_sweep("title", {}).to_png().ok());
  EXPECT_TRUE(draw_sweep("title", {{"1 thread", {}}}).to_svg().ok());
  EXPECT_TRUE(draw_sweep("title", {{"1 thread", {{1, 1000}}}}).to_svg().ok());
}

}  // namespace
}  // namespace spindle

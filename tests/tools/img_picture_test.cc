// spindle-img map --picture and bench --sweep --picture as a program.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/svg.h"

namespace spindle {
namespace {

namespace fs = std::filesystem;
using ::spindle::testing::parse_svg;
using ::spindle::testing::run_tool_apart;
using ::spindle::testing::run_tool_ok;
using ::spindle::testing::Svg;
using ::spindle::testing::SvgRectangle;
using ::spindle::testing::temporary_path;
using Arguments = std::vector<std::string>;

constexpr char kData[] = "#1f77b4";
constexpr char kCompressed[] = "#2ca02c";
constexpr char kZero[] = "#ffbb78";
constexpr char kHole[] = "#e0e0e0";
constexpr double kLeft = 20;
constexpr double kWidth = 1024;

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

class ImgPictureTest : public ::testing::Test {
 protected:
  ImgPictureTest() { fs::create_directory(folder_); }
  ~ImgPictureTest() override {
    std::error_code error;
    fs::remove_all(folder_, error);
  }

  std::string at(const std::string& name) const {
    return absl::StrCat(folder_, "/", name);
  }
  // In the folder, with what `before` says for "env".
  static testing::SeparateResult run_ours(const Arguments& arguments,
                                          const Arguments& before = {}) {
    Arguments all = {"env"};
    all.insert(all.end(), before.begin(), before.end());
    all.push_back(absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                               std::getenv("TEST_WORKSPACE"),
                               "/tools/spindle-img"));
    all.insert(all.end(), arguments.begin(), arguments.end());
    const auto result = run_tool_apart(all);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : testing::SeparateResult{};
  }
  static void qemu(const Arguments& arguments) {
    const auto output = run_tool_ok(arguments);
    ASSERT_TRUE(output.ok()) << output.status();
  }
  // Three layers: 4 MiB over 4 MiB over 3 MiB.
  void make_chain() {
    qemu({"truncate", "-s", "3M", at("base")});
    qemu({"qemu-io", "-f", "raw", "-c", "write 1M 512k", at("base")});
    qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", at("base"), "-F",
          "raw", at("mid"), "4M"});
    qemu({"qemu-io", "-f", "qcow2", "-c", "write -z 2M 1M", "-c",
          "write -c 0 64k", "-c", "write 64k 64k", at("mid")});
    qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", at("mid"), "-F",
          "qcow2", at("top"), "4M"});
    qemu({"qemu-io", "-f", "qcow2", "-c", "write 3M 1M", at("top")});
  }

  const std::string folder_ = temporary_path("pictures");
};

struct Extent {
  std::string colour;
  double begin;  // in parts of the disk
  double end;
};

// The strips of a map, from the top layer down.
std::vector<std::vector<SvgRectangle>> strips_of(const Svg& svg) {
  std::map<double, std::vector<SvgRectangle>> strips;  // by y
  for (const SvgRectangle& rectangle : svg.rectangles) {
    if (rectangle.height == 40) strips[rectangle.y].push_back(rectangle);
  }
  std::vector<std::vector<SvgRectangle>> all;
  for (auto& [y, strip] : strips) all.push_back(std::move(strip));
  return all;
}

void expect_strip(const std::vector<SvgRectangle>& strip,
                  const std::vector<Extent>& extents) {
  ASSERT_EQ(strip.size(), extents.size());
  for (size_t i = 0; i < strip.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(strip[i].colour, extents[i].colour);
    EXPECT_NEAR(strip[i].x, kLeft + kWidth * extents[i].begin, 0.01);
    EXPECT_NEAR(strip[i].width, kWidth * (extents[i].end - extents[i].begin),
                0.01);
  }
}

TEST_F(ImgPictureTest, MapHasARectangleForEachExtentOfEachLayer) {
  make_chain();
  const auto result = run_ours({"map", "--picture", at("a.svg"), at("top")});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(result.output, "");
  const auto strips = strips_of(parse_svg(read_text(at("a.svg"))));
  ASSERT_EQ(strips.size(), 3u);
  expect_strip(strips[0], {{kHole, 0, 0.75}, {kData, 0.75, 1}});
  expect_strip(strips[1], {{kCompressed, 0, 1 / 64.0},
                           {kData, 1 / 64.0, 2 / 64.0},
                           {kHole, 2 / 64.0, 0.5},
                           {kZero, 0.5, 0.75},
                           {kHole, 0.75, 1}});
  // Ends where that disk does.
  expect_strip(strips[2],
               {{kZero, 0, 0.25}, {kData, 0.25, 0.375}, {kZero, 0.375, 0.75}});
}

TEST_F(ImgPictureTest, MapDrawsAPartOfTheDisk) {
  make_chain();
  const auto result = run_ours(
      {"map", "-s", "2560k", "-l", "1M", "--picture", at("a.svg"), at("top")});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const auto strips = strips_of(parse_svg(read_text(at("a.svg"))));
  ASSERT_EQ(strips.size(), 3u);
  expect_strip(strips[0], {{kHole, 0, 0.5}, {kData, 0.5, 1}});
  expect_strip(strips[1], {{kZero, 0, 0.5}, {kHole, 0.5, 1}});
  expect_strip(strips[2], {{kZero, 0, 0.5}});
}

// More extents than there are columns: they stand one above the other.
TEST_F(ImgPictureTest, MapShowsWhatIsSmallerThanAColumn) {
  qemu({"qemu-img", "create", "-q", "-f", "qcow2", at("a"), "1G"});
  qemu({"qemu-io", "-f", "qcow2", "-c", "write 0 512k", "-c", "write 10M 64k",
        at("a")});
  ASSERT_EQ(run_ours({"map", "--picture", at("a.svg"), at("a")}).exit_code, 0);
  double height = 0;
  std::vector<SvgRectangle> data;
  for (const SvgRectangle& one : parse_svg(read_text(at("a.svg"))).rectangles) {
    if (one.colour == kData && one.width == 1) data.push_back(one);
    if (one.x == kLeft && one.width == 1) height += one.height;
  }
  ASSERT_EQ(data.size(), 2u);
  EXPECT_EQ(data[0].x, kLeft);
  EXPECT_EQ(data[0].height, 20);
  EXPECT_EQ(data[1].x, kLeft + 10);
  EXPECT_GE(data[1].height, 4);
  EXPECT_LT(data[1].height, 10);
  EXPECT_EQ(height, 40);
}

TEST_F(ImgPictureTest, MapOfNothing) {
  qemu({"qemu-img", "create", "-q", "-f", "qcow2", at("a"), "0"});
  EXPECT_EQ(run_ours({"map", "--picture", at("a.svg"), at("a")}).exit_code, 0);
  EXPECT_EQ(run_ours({"map", "--picture", at("a.png"), at("a")}).exit_code, 0);
  EXPECT_TRUE(absl::StartsWith(read_text(at("a.png")), "\x89PNG"));
}

TEST_F(ImgPictureTest, WhatCannotBeDrawnIsSaid) {
  make_chain();
  const auto expect_failure = [](const Arguments& arguments,
                                 const std::string& words) {
    const auto result = run_ours(arguments);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_TRUE(absl::StrContains(result.errors, words)) << result.errors;
  };
  expect_failure({"map", "--picture", at("a.jpg"), at("top")},
                 "a picture's name ends with .svg or .png");
  EXPECT_FALSE(fs::exists(at("a.jpg")));
  expect_failure({"map", "--picture", at("none/a.png"), at("top")},
                 "No such file or directory");
  expect_failure({"map", "--picture", at("a.png"), "--output=json", at("top")},
                 "mutually exclusive");
  expect_failure({"bench", "--picture", at("a.png"), at("top")},
                 "only available with --sweep");
  expect_failure({"bench", "--sweep", "--picture", at("a"), at("top")},
                 "a picture's name ends with .svg or .png");
  // The image itself.
  fs::rename(at("top"), at("top.png"));
  const std::string before = read_text(at("top.png"));
  expect_failure({"map", "--picture", at("top.png"), at("top.png")},
                 "a file that is no picture has this name");
  EXPECT_TRUE(read_text(at("top.png")) == before);  // not to be printed
}

// How many rectangles of each colour there are.
std::map<std::string, int> colours_of(const Svg& svg) {
  std::map<std::string, int> colours;
  for (const SvgRectangle& one : svg.rectangles) ++colours[one.colour];
  return colours;
}

TEST_F(ImgPictureTest, SweepIsDrawnBesideQemuWhereThatIsInstalled) {
  qemu({"qemu-img", "create", "-q", "-f", "raw", at("a"), "1M"});
  const Arguments sweep = {"bench",     "--sweep",   "-c",   "5000",      "-f",
                           "raw",       "-s",        "4k",   "--threads", "1",
                           "--picture", at("a.svg"), at("a")};
  const auto result = run_ours(sweep);
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_TRUE(absl::StrContains(result.output, "ops/s"));
  // Four depths in two diagrams, and once in the legend.
  auto colours = colours_of(parse_svg(read_text(at("a.svg"))));
  EXPECT_EQ(colours["#1f77b4"], 9);  // one thread
  EXPECT_EQ(colours["#2ca02c"], 9);  // qemu-img

  // It cannot measure at random offsets: the legend says so.
  Arguments random = sweep;
  random.insert(random.begin() + 1, "--random");
  ASSERT_EQ(run_ours(random).exit_code, 0);
  colours = colours_of(parse_svg(read_text(at("a.svg"))));
  EXPECT_EQ(colours["#1f77b4"], 9);
  EXPECT_EQ(colours["#2ca02c"], 1);

  // Not installed, or this program under its name.
  fs::create_directory(at("bin"));
  fs::create_symlink(fs::canonical(absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                                                std::getenv("TEST_WORKSPACE"),
                                                "/tools/spindle-img")),
                     at("bin/qemu-img"));
  for (const char* folder : {"none", "bin"}) {
    ASSERT_EQ(run_ours(sweep, {absl::StrCat("PATH=", at(folder))}).exit_code,
              0);
    colours = colours_of(parse_svg(read_text(at("a.svg"))));
    EXPECT_EQ(colours["#1f77b4"], 9) << folder;
    EXPECT_EQ(colours["#2ca02c"], 0) << folder;
  }
}

}  // namespace
}  // namespace spindle

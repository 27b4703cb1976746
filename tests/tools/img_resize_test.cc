// spindle-img resize as a program, beside qemu-img resize.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using ::spindle::testing::ImageFile;
using ::spindle::testing::temporary_path;
using ::spindle::testing::ToolResult;
using Arguments = std::vector<std::string>;

ToolResult run(const std::string& program, Arguments arguments) {
  arguments.insert(arguments.begin(), {program, "resize"});
  const auto result = testing::run_tool(arguments);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : ToolResult();
}

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
}

uint64_t length_of(const std::string& path) {
  struct stat facts = {};
  return ::stat(path.c_str(), &facts) == 0
             ? static_cast<uint64_t>(facts.st_size)
             : 0;
}

// Two images of 10 MiB that are alike, one for each program.
class ResizeTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    for (const ImageFile& image : {ours_, theirs_}) {
      ASSERT_TRUE(testing::qemu_create({.image = image,
                                        .size_bytes = 10 << 20,
                                        .options = {},
                                        .backing = {}})
                      .ok());
      ASSERT_TRUE(testing::qemu_io(image, {"write -P 7 0 10M"}).ok());
    }
  }

  // Both do the same, say the same, and have the same.  `arguments`: "IMAGE"
  // stands for the image.
  void expect_same(const std::string& text) {
    SCOPED_TRACE(text);
    const auto arguments = [&](const std::string& path) {
      Arguments list = {"-f", GetParam()};
      std::string word;
      for (const char c : absl::StrCat(text, " ")) {
        if (c != ' ') {
          word += c;
          continue;
        }
        list.push_back(word == "IMAGE" ? path : word);
        word.clear();
      }
      return list;
    };
    const ToolResult mine = run(our_program(), arguments(ours_.path));
    const ToolResult their = run("qemu-img", arguments(theirs_.path));
    EXPECT_EQ(mine.exit_code, their.exit_code);
    EXPECT_EQ(absl::StrReplaceAll(mine.output, {{"spindle-img", "qemu-img"}}),
              their.output);
    const absl::Status same = testing::qemu_compare(ours_, theirs_);
    EXPECT_TRUE(same.ok()) << same;
    if (ours_.format == "raw") {
      EXPECT_EQ(length_of(ours_.path), length_of(theirs_.path));
    }
  }

  const ImageFile ours_{temporary_path("ours"), GetParam()};
  const ImageFile theirs_{temporary_path("theirs"), GetParam()};
};

TEST_P(ResizeTest, SizesAreQemus) {
  for (const char* text :
       {"IMAGE 20M", "IMAGE +512", "-q IMAGE 21M", "--shrink IMAGE -5M",
        "--shrink IMAGE 1.5M", "IMAGE 1536k", "--preallocation=falloc IMAGE 2M",
        "--preallocation=full IMAGE +1M", "--preallocation=off IMAGE 4M"}) {
    expect_same(text);
  }
}

TEST_P(ResizeTest, RefusalsAreQemus) {
  for (const char* text :
       {"IMAGE 5M", "IMAGE -5M", "IMAGE -10M", "--shrink IMAGE -20M",
        "--shrink IMAGE 0", "IMAGE 20X", "IMAGE +", "IMAGE 99E",
        "--shrink --preallocation=full IMAGE 5M",
        "--preallocation=falloc IMAGE 10M", "--preallocation=bla IMAGE 20M",
        "IMAGE"}) {
    expect_same(text);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, ResizeTest, ::testing::Values("raw", "qcow2"),
                         [](const auto& info) { return info.param; });

class ResizeQcow2 : public ResizeTest {};
TEST_P(ResizeQcow2, RefusesSizesThatAreNotWholeSectors) {
  const ToolResult result = run(our_program(), {ours_.path, "10485761"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.output.rfind(
                "spindle-img: The new size must be a multiple of 512", 0),
            0U)
      << result.output;
}
TEST_P(ResizeQcow2, PreallocatesMetadata) {
  expect_same("--preallocation=metadata IMAGE 12M");
}
INSTANTIATE_TEST_SUITE_P(Formats, ResizeQcow2, ::testing::Values("qcow2"),
                         [](const auto& info) { return info.param; });

class ResizeRaw : public ResizeTest {};
TEST_P(ResizeRaw, TakesAnyNumberOfBytes) { expect_same("IMAGE +11111111"); }
TEST_P(ResizeRaw, HasNoMetadata) {
  expect_same("--preallocation=metadata IMAGE 12M");
}
INSTANTIATE_TEST_SUITE_P(Formats, ResizeRaw, ::testing::Values("raw"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace spindle

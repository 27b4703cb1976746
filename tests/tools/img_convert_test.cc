// spindle-img convert as a program, judged by qemu-img.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using ::spindle::testing::ImageFile;
using ::spindle::testing::qemu_check;
using ::spindle::testing::qemu_compare;
using ::spindle::testing::temporary_path;
using ::spindle::testing::ToolResult;
using Arguments = std::vector<std::string>;

ToolResult convert(Arguments arguments) {
  const std::string program =
      absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                   std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
  arguments.insert(arguments.begin(), {program, "convert"});
  const auto result = testing::run_tool(arguments);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : ToolResult();
}

uint64_t length_of(const std::string& path) {
  struct stat facts = {};
  return ::stat(path.c_str(), &facts) == 0
             ? static_cast<uint64_t>(facts.st_size)
             : 0;
}

// Noise, text and zeroes in turn; an odd length.
ImageFile make_source() {
  std::mt19937_64 random(testing::test_seed());
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 30; ++i) {
    const size_t count = 1000 + random() % 300000;
    for (size_t j = 0; j < count; ++j) {
      const uint8_t text = static_cast<uint8_t>('a' + j % 23);
      bytes.push_back(i % 3 == 0   ? static_cast<uint8_t>(random())
                      : i % 3 == 1 ? text
                                   : uint8_t{0});
    }
  }
  bytes.resize(bytes.size() | 1);
  const ImageFile source{temporary_path("source"), "raw"};
  EXPECT_TRUE(testing::write_file(source.path, bytes).ok());
  return source;
}

TEST(Convert, TheContentIsTheSources) {
  const ImageFile source = make_source();
  for (const Arguments& flags :
       {Arguments{}, Arguments{"-c"}, Arguments{"-c", "-W", "-m", "16"},
        Arguments{"-W", "-m", "1"}}) {
    for (const char* options :
         {"compression_type=zlib", "compression_type=zstd", "compat=0.10",
          "cluster_size=512,refcount_bits=1", "cluster_size=2M"}) {
      SCOPED_TRACE(absl::StrCat(flags.size(), " flags, ", options));
      const ImageFile target{temporary_path("target"), "qcow2"};
      Arguments arguments = flags;
      arguments.insert(arguments.end(), {"-f", "raw", "-O", "qcow2", "-o",
                                         options, source.path, target.path});
      const ToolResult result = convert(arguments);
      ASSERT_EQ(result.exit_code, 0) << result.output;
      EXPECT_EQ(result.output, "");
      EXPECT_EQ(qemu_check(target), absl::OkStatus());
      EXPECT_EQ(qemu_compare(source, target), absl::OkStatus());
      // And back, with the format guessed.
      const ImageFile back{temporary_path("back"), "raw"};
      ASSERT_EQ(convert({target.path, back.path}).exit_code, 0);
      EXPECT_EQ(qemu_compare(source, back), absl::OkStatus());
      ::unlink(target.path.c_str());
      ::unlink(back.path.c_str());
    }
  }
  ::unlink(source.path.c_str());
}

TEST(Convert, ReadsThroughABackingFileAndCompresses) {
  const ImageFile base = make_source();
  const ImageFile overlay{temporary_path("overlay"), "qcow2"};
  testing::QemuCreate create;
  create.image = overlay;
  create.backing = base;
  create.size_bytes = uint64_t{16} << 20;
  ASSERT_EQ(qemu_create(create), absl::OkStatus());
  ASSERT_EQ(qemu_io(overlay, {"write -P 7 100k 300k", "write -z 1M 64k"}),
            absl::OkStatus());
  const ImageFile plain{temporary_path("plain"), "qcow2"};
  const ImageFile packed{temporary_path("packed"), "qcow2"};
  ASSERT_EQ(convert({"-O", "qcow2", overlay.path, plain.path}).exit_code, 0);
  ASSERT_EQ(convert({"-c", "-O", "qcow2", overlay.path, packed.path}).exit_code,
            0);
  for (const ImageFile& target : {plain, packed}) {
    EXPECT_EQ(qemu_check(target), absl::OkStatus());
    EXPECT_EQ(qemu_compare(overlay, target), absl::OkStatus());
  }
  EXPECT_LT(length_of(packed.path), length_of(plain.path));
}

TEST(Convert, RefusesAndLeavesNothingBehind) {
  const ImageFile source = make_source();
  const std::string target = temporary_path("target");
  const struct {
    Arguments arguments;
    const char* message;
  } cases[] = {
      {{"-f", "raw", "-c", source.path, target}, "Compression not supported"},
      {{"-f", "raw", "-O", "qcow2", "-o", "compression_type=lz4", source.path,
        target},
       "lz4"},
      {{"-f", "raw", "-O", "no", source.path, target}, "Unknown file format"},
      {{"-f", "qcow2", "-O", "qcow2", source.path, target}, "Could not open"},
      {{"-f", "raw", "-O", "qcow2", "-m", "17", source.path, target},
       "coroutines"},
      {{"-f", "raw", source.path}, "Must specify image file name"},
      {{"-f", "raw", "-O", "qcow2", source.path, source.path}, "lock"},
  };
  const auto before = testing::read_file(source.path);
  for (const auto& c : cases) {
    const ToolResult result = convert(c.arguments);
    EXPECT_EQ(result.exit_code, 1) << c.message;
    EXPECT_TRUE(absl::StrContains(result.output, c.message)) << result.output;
    EXPECT_NE(::access(target.c_str(), F_OK), 0) << c.message;
  }
  const auto after = testing::read_file(source.path);
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_TRUE(*before == *after);
}

}  // namespace
}  // namespace spindle

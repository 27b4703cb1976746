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
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using ::spindle::testing::ImageFile;
using ::spindle::testing::qemu_check;
using ::spindle::testing::qemu_compare;
using ::spindle::testing::SeparateResult;
using ::spindle::testing::temporary_path;
using ::spindle::testing::ToolResult;
using Arguments = std::vector<std::string>;

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
}

ToolResult convert(Arguments arguments) {
  arguments.insert(arguments.begin(), {our_program(), "convert"});
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

// What qemu-img copies of a snapshot; but that gives the copy the length that
// the disk has now, and this the snapshot's own.
TEST(Convert, CopiesASnapshot) {
  const ImageFile image{temporary_path("image"), "qcow2"};
  ASSERT_TRUE(
      testing::qemu_create(
          {.image = image, .size_bytes = 1 << 20, .options = {}, .backing = {}})
          .ok());
  const auto qemu_img = [&](Arguments arguments) {
    arguments.insert(arguments.begin(), "qemu-img");
    const auto done = testing::run_tool_ok(arguments);
    EXPECT_TRUE(done.ok()) << done.status();
  };
  for (const char* name : {"a", "1"}) {
    ASSERT_TRUE(testing::qemu_io(
                    image, {absl::StrCat("write -P ", name[0] % 7, " 0 500k")})
                    .ok());
    qemu_img({"snapshot", "-c", name, image.path});
  }
  qemu_img({"resize", "-q", image.path, "3M"});
  ASSERT_TRUE(testing::qemu_io(image, {"write -P 9 0 3M"}).ok());
  for (const char* choice : {"a", "1", "2", "snapshot.name=1", "snapshot.id=1",
                             "snapshot.id=1,snapshot.name=a"}) {
    SCOPED_TRACE(choice);
    const ImageFile ours{temporary_path("ours"), "raw"};
    const ImageFile theirs{temporary_path("theirs"), "raw"};
    const ToolResult result =
        convert({"-l", choice, "-O", "raw", image.path, ours.path});
    EXPECT_EQ(result.exit_code, 0) << result.output;
    qemu_img({"convert", "-l", choice, "-O", "raw", image.path, theirs.path});
    EXPECT_EQ(length_of(ours.path), uint64_t{1} << 20);
    ASSERT_EQ(::truncate(theirs.path.c_str(), 1 << 20), 0);
    EXPECT_TRUE(qemu_compare(ours, theirs).ok());
  }
  EXPECT_EQ(convert({"-l", "b", image.path, temporary_path("no")}).exit_code,
            1);
}

// ---- Beside qemu-img --------------------------------------------------------

class ConvertBeside : public ::testing::Test {
 protected:
  // An overlay with data, zeroes and holes of its own, longer than what is
  // below.
  void SetUp() override {
    ASSERT_TRUE(testing::qemu_create({.image = base_,
                                      .size_bytes = 4 << 20,
                                      .options = "",
                                      .backing = {}}) == absl::OkStatus());
    ASSERT_EQ(qemu_io(base_, {"write -P 1 0 1M", "write -P 2 1536k 700k",
                              "write -P 3 3M 1M"}),
              absl::OkStatus());
    ASSERT_TRUE(testing::qemu_create({.image = source_,
                                      .size_bytes = 6 << 20,
                                      .options = "cluster_size=4k",
                                      .backing = base_}) == absl::OkStatus());
    ASSERT_EQ(qemu_io(source_, {"write -P 4 64k 64k", "write -z 1M 64k",
                                "write -P 0 1600k 100k", "write -P 5 2M 12k",
                                "write -z 3M 6k", "write -P 6 3600k 1k",
                                "discard 3700k 64k", "write -P 7 5M 100k",
                                "write -z 5500k 64k"}),
              absl::OkStatus());
  }
  void TearDown() override {
    for (const ImageFile& image : {base_, source_, ours_, theirs_})
      ::unlink(image.path.c_str());
  }

  // Both convert the source with `arguments`, in which "TARGET" stands for the
  // target, which "qemu-img create" makes with `before` if there are any.
  void expect_same(Arguments arguments, const std::string& format,
                   const Arguments& before = {}) {
    SCOPED_TRACE(absl::StrJoin(arguments, " "));
    ours_.format = theirs_.format = format;
    SeparateResult results[2];
    const std::string programs[] = {our_program(), "qemu-img"};
    const ImageFile targets[] = {ours_, theirs_};
    for (size_t i = 0; i < 2; ++i) {
      ::unlink(targets[i].path.c_str());
      if (!before.empty()) make_target(targets[i].path, before);
      Arguments all = {programs[i], "convert", "-O", format};
      all.insert(all.end(), arguments.begin(), arguments.end());
      all.insert(all.end(), {source_.path, targets[i].path});
      const auto result = testing::run_tool_apart(all);
      ASSERT_TRUE(result.ok()) << result.status();
      results[i] = *result;
      results[i].errors = absl::StrReplaceAll(
          result->errors,
          {{"spindle-img", "qemu-img"}, {targets[i].path, "TARGET"}});
    }
    EXPECT_EQ(results[0].exit_code, results[1].exit_code) << results[0].errors;
    EXPECT_EQ(results[0].errors, results[1].errors);
    if (results[1].exit_code == 0 && results[0].exit_code == 0) compare();
  }

  void make_target(const std::string& path, const Arguments& before) {
    Arguments all = {"qemu-img", "create", "-q", "-f", ours_.format};
    all.insert(all.end(), before.begin(), before.end() - 1);
    all.insert(all.end(), {path, before.back()});
    ASSERT_TRUE(testing::run_tool_ok(all).ok());
    if (!has_old_data_) return;
    ASSERT_EQ(testing::qemu_io({path, ours_.format}, {"write -P 9 0 5M"}),
              absl::OkStatus());
  }

  void compare() {
    EXPECT_EQ(qemu_compare(ours_, theirs_), absl::OkStatus());
    if (ours_.format == "qcow2") {
      EXPECT_EQ(qemu_check(ours_), absl::OkStatus());
    }
    const auto our_map = testing::qemu_map(ours_);
    const auto their_map = testing::qemu_map(theirs_);
    ASSERT_TRUE(our_map.ok() && their_map.ok());
    const auto text = [](const std::vector<testing::MapEntry>& map) {
      std::string lines;
      for (const auto& entry : testing::placement(map))
        absl::StrAppend(&lines, testing::to_string(entry), "\n");
      return lines;
    };
    EXPECT_EQ(text(*our_map), text(*their_map));
  }

  // Whether a target that is there has something to be overwritten.
  bool has_old_data_ = false;
  const ImageFile base_{temporary_path("base"), "qcow2"};
  const ImageFile source_{temporary_path("overlay"), "qcow2"};
  ImageFile ours_{temporary_path("ours"), "qcow2"};
  ImageFile theirs_{temporary_path("theirs"), "qcow2"};
};

TEST_F(ConvertBeside, NewImages) {
  for (const char* format : {"raw", "qcow2"}) {
    expect_same({}, format);
    expect_same({"-t", "writeback", "-T", "none"}, format);
    expect_same({"-U"}, format);
    expect_same({"-r", "100M"}, format);
    for (const char* bytes : {"0", "512", "4k", "64k", "1M"})
      expect_same({"-S", bytes}, format);
  }
  for (const char* options :
       {"cluster_size=512", "cluster_size=2M", "compat=0.10"}) {
    expect_same({"-o", options}, "qcow2");
    expect_same({"-S", "32k", "-o", options}, "qcow2");
    expect_same({"-c", "-o", options}, "qcow2");
  }
}

TEST_F(ConvertBeside, OverABackingFile) {
  const std::string base = base_.path;
  expect_same({"-B", base, "-F", "qcow2"}, "qcow2");
  expect_same({"-o", absl::StrCat("backing_file=", base, ",backing_fmt=qcow2")},
              "qcow2");
  for (const char* options :
       {"cluster_size=512", "cluster_size=4k", "cluster_size=2M"}) {
    expect_same({"-B", base, "-F", "qcow2", "-o", options}, "qcow2");
    expect_same({"-c", "-B", base, "-F", "qcow2", "-o", options}, "qcow2");
    expect_same({"-S", "0", "-B", base, "-F", "qcow2", "-o", options}, "qcow2");
  }
  expect_same({"-B", base}, "qcow2");
  expect_same({"-B", base, "-F", "qcow2"}, "raw");
}

TEST_F(ConvertBeside, IntoAnImageThatIsThere) {
  const Arguments over = {"-b", base_.path, "-F", "qcow2", "6M"};
  has_old_data_ = true;
  expect_same({"-n"}, "qcow2", {"6M"});
  expect_same({"-n"}, "qcow2", {"-o", "cluster_size=4k", "8M"});
  expect_same({"-n"}, "qcow2", over);
  expect_same({"-n"}, "raw", {"8M"});
  expect_same({"-n", "-S", "0"}, "qcow2", {"6M"});
  has_old_data_ = false;
  expect_same({"-n", "-B", base_.path}, "qcow2", over);
  expect_same({"-n", "--target-is-zero"}, "qcow2", {"6M"});
  expect_same({"-n"}, "qcow2", {"5M"});
  expect_same({"-n", "-o", "cluster_size=4k"}, "qcow2", {"6M"});
}

TEST_F(ConvertBeside, ArgumentsThatAreWrong) {
  for (const Arguments& wrong :
       {Arguments{"-S", "3"}, Arguments{"-S", "x"}, Arguments{"-S", "17M"},
        Arguments{"-t", "foo"}, Arguments{"-T", "foo"}, Arguments{"-r", "x"},
        Arguments{"--target-is-zero"}, Arguments{"-m", "0"}}) {
    expect_same(wrong, "qcow2");
  }
}

}  // namespace
}  // namespace spindle

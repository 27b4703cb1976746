// spindle-io as a program, beside qemu-io on an equal image: what it prints,
// its exit code, and what becomes of the image.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using ::spindle::testing::ImageFile;
using ::spindle::testing::SeparateResult;
using ::spindle::testing::temporary_path;
using Arguments = std::vector<std::string>;

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-io");
}

// Without what may differ: times, rates, program names, and the words that
// describe a command.
std::string masked(const std::string& text) {
  std::string result = absl::StrReplaceAll(
      text, {{our_program(), "qemu-io"}, {"spindle-io", "qemu-io"}});
  result = std::regex_replace(result, std::regex("(, 1 ops;)[^\n]*"), "$1");
  result = std::regex_replace(
      result, std::regex("(^|\n)([0-9]+,1,)[0-9:.]+,[0-9.]+,[0-9.]+"), "$1$2");
  return std::regex_replace(result, std::regex(" -- [a-z][^\n]*"), "");
}

// The image, and its twin for the other program.
struct Twins {
  std::string format;
  std::string ours = temporary_path("ours");
  std::string theirs = temporary_path("theirs");
  explicit Twins(std::string image_format) : format(std::move(image_format)) {}
  ~Twins() {
    ::unlink(ours.c_str());
    ::unlink(theirs.c_str());
  }
  void create(const std::string& size, const std::string& options = "") const {
    for (const std::string& path : {ours, theirs}) {
      Arguments arguments = {"qemu-img", "create", "-q", "-f", format};
      if (!options.empty()) arguments.insert(arguments.end(), {"-o", options});
      arguments.insert(arguments.end(), {path, size});
      ASSERT_TRUE(testing::run_tool_ok(arguments).ok());
    }
  }
};

std::string placement_of(const std::string& path) {
  const auto map = testing::qemu_map({path, "qcow2"});
  EXPECT_TRUE(map.ok()) << map.status();
  std::string lines;
  if (!map.ok()) return lines;
  for (const auto& entry : testing::placement(*map))
    absl::StrAppend(&lines, testing::to_string(entry), "\n");
  return lines;
}

// Runs both with `arguments`, in which "IMAGE" stands for the image.  In any
// order: what is asynchronous may end before the next prompt, or after it.
void expect_same(const Twins& images, Arguments arguments,
                 const std::string& input = "", bool any_order = false) {
  SCOPED_TRACE(absl::StrJoin(arguments, " "));
  const auto run = [&](const std::string& program, const std::string& image) {
    Arguments all = arguments;
    std::replace(all.begin(), all.end(), std::string("IMAGE"), image);
    all.insert(all.begin(), program);
    const auto result = testing::run_tool_apart(all, input);
    EXPECT_TRUE(result.ok()) << result.status();
    SeparateResult answer = result.ok() ? *result : SeparateResult();
    for (std::string* text : {&answer.output, &answer.errors})
      *text = absl::StrReplaceAll(masked(*text), {{image, "IMAGE"}});
    return answer;
  };
  SeparateResult ours = run(our_program(), images.ours);
  SeparateResult theirs = run("qemu-io", images.theirs);
  if (any_order) {
    for (std::string* text : {&ours.output, &theirs.output}) {
      *text = absl::StrReplaceAll(*text, {{"qemu-io> ", ""}});
      std::vector<std::string> lines = absl::StrSplit(*text, '\n');
      std::sort(lines.begin(), lines.end());
      *text = absl::StrJoin(lines, "\n");
    }
  }
  EXPECT_EQ(ours.output, theirs.output);
  EXPECT_EQ(ours.errors, theirs.errors);
  EXPECT_EQ(ours.exit_code, theirs.exit_code);
  const ImageFile our_image{images.ours, images.format};
  EXPECT_EQ(qemu_compare(our_image, {images.theirs, images.format}),
            absl::OkStatus());
  if (images.format == "qcow2") {
    if (!any_order) {
      EXPECT_EQ(placement_of(images.ours), placement_of(images.theirs));
    }
    EXPECT_EQ(testing::qemu_check(our_image), absl::OkStatus());
  }
}

// Each of `commands` by itself, one after the other on the same image.
void expect_same_each(const Twins& images, const Arguments& commands) {
  for (const std::string& command : commands)
    expect_same(images, {"-f", images.format, "IMAGE", "-c", command});
}

class SpindleIo : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    // Where qemu-io puts the overlay of a snapshot.
    ::setenv("TMPDIR", std::getenv("TEST_TMPDIR"), /*overwrite=*/1);
    images_.create("1M");
  }
  Twins images_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Formats, SpindleIo, ::testing::Values("raw", "qcow2"),
                         [](const auto& info) { return info.param; });

TEST_P(SpindleIo, Reads) {
  expect_same_each(images_, {"read 0 512",
                             "read",
                             "read 0",
                             "read 0 512 3",
                             "read 1 511",
                             "read 0.5k 1.5k",
                             "read 0x200 0x200",
                             "read 010 512",
                             "read 1M 512",
                             "read 512k 1M",
                             "read 1M 0",
                             "read 0 0",
                             "read -C 0 512",
                             "read -p 0 512",
                             "read -a 0 512",
                             "read -v 0 48",
                             "read -q -v 3 20",
                             "read -Cv 0 16",
                             "  read    0  512 ",
                             "r 0 512",
                             "read -- 0 512",
                             "read 0 512 -q",
                             "read 1048575 1",
                             "read 1048575 2",
                             "read 0 1M",
                             "read 7E 1",
                             "readv 0 512 512",
                             "readv -v 0 16 17",
                             "readv 0",
                             "readv 0 x",
                             "readv -x 0 1",
                             "readv 1M 512",
                             "readv 0 3G",
                             "readv 0 1G 1G 1G"});
}

TEST_P(SpindleIo, ReadsArePatternChecked) {
  expect_same_each(images_, {"read -P 0 0 512",
                             "read -P 1 0 512",
                             "read -P 1 -q 0 512",
                             "read -P 0xff 0 512",
                             "read -P 256 0 512",
                             "read -P x 0 512",
                             "read -P -1 0 512",
                             "read -P",
                             "read -s 0 0 512",
                             "read -l 5 0 512",
                             "read -P 0 -s 5 -l 600 0 512",
                             "read -P 0 -s 600 0 512",
                             "read -P 0 -s 5 -l 10 0 512",
                             "read -P 0 -s x 0 512",
                             "read -P 0 -l x 0 512",
                             "read -P 0 -l -5 0 512",
                             "read -P 5 -P 0 0 512",
                             "read -vP0 0 4",
                             "write -P 9 100 100",
                             "read -P 9 -s 100 -l 100 0 512",
                             "read -P 9 -s 99 -l 100 0 512",
                             "readv -P 5 0 512 0",
                             "readv -P 0 1k 1k",
                             "aio_read -P 0 1k 512",
                             "aio_read -P 1 1k 512"});
}

TEST_P(SpindleIo, NumbersThatAreNone) {
  expect_same_each(images_, {"read x 512",
                             "read 0 x",
                             "read -1 512",
                             "read 0 -1",
                             "read -- -1 512",
                             "read 99999999999999999999 512",
                             "read 0 3G",
                             "read 0 1kk",
                             "read 0 k",
                             "read 0 1.k",
                             "read 0 .5k",
                             "read 0 0x",
                             "read 0 '512'",
                             "write 9223372036854775807 1",
                             "write 9223372036854775808 1",
                             "write 8E 1",
                             "write 0 2147483137",
                             "write -z 0 3G",
                             "write -P 1k 0 512",
                             "write -P 077 0 512",
                             "write 0 1e3"});
}

TEST_P(SpindleIo, Writes) {
  const std::string pattern = temporary_path("pattern");
  std::vector<uint8_t> bytes(256);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i);
  ASSERT_TRUE(testing::write_file(pattern, bytes).ok());
  const std::string empty = temporary_path("empty");
  ASSERT_TRUE(testing::write_file(empty, {}).ok());
  expect_same_each(images_, {"write 0 512",
                             "read -v 0 32",
                             "write -P 7 100 1000",
                             "w -P 8 64k 64k",
                             "write -C 0 512",
                             "write -q 0 512",
                             "write 1M 1",
                             "write 1M 0",
                             "write 1048575 2",
                             "write 0 2147483136",
                             "write -f 0 64k",
                             "write -p 0 1k",
                             "write 0 -P 3 512",
                             "write 0 512 -P 4",
                             "write - 0 512",
                             "write -P 3",
                             "write -h",
                             "write 0 512 1",
                             "writev 0 512",
                             "writev -P 2 0 512 1k 7",
                             "writev -f 3 4",
                             "writev 0",
                             "writev 1M 1",
                             absl::StrCat("write -s ", pattern, " 1 1000"),
                             "read -v 0 1100",
                             absl::StrCat("write -s ", pattern, " -P 3 0 10"),
                             absl::StrCat("write -s ", pattern, " -z 0 10"),
                             absl::StrCat("write -s ", empty, " 0 10"),
                             "write -s no-such-file 0 10",
                             "flush",
                             "flush 1",
                             "f"});
  ::unlink(pattern.c_str());
  ::unlink(empty.c_str());
}

TEST_P(SpindleIo, WritesZeroes) {
  expect_same_each(
      images_,
      {"write -P 1 0 1M", "write -z 0 64k", "write -z -u 64k 64k",
       "write -z 100 1000", "write -z -u 200k 100000", "write -z 1M 512",
       "write -z 0 511", "write -f -z 0 1k", "write -u 0 64k", "write -n 0 64k",
       "write -z -P 3 0 64k", "write -b -z 0 64k", "write -f -c 0 64k",
       "write -f -b 0 512", "write -z -q 900k 1k", "write -z -C 900k 1k",
       "aio_write -z 300k 70k"});
}

TEST_P(SpindleIo, Discards) {
  expect_same_each(
      images_, {"write -P 1 0 1M", "discard 0 64k", "discard -q 0 64k",
                "discard -C 0 64k", "discard 512 64k", "discard 0 3G",
                "discard 0", "discard -x 0 1", "discard 0 2M", "discard x 0",
                "discard 0 x", "discard 0 0", "discard 0 1 1", "d 512k 256k"});
  // What a file does with less than a sector is its own business.
  if (images_.format == "qcow2")
    expect_same_each(images_, {"discard 1 64k", "discard 100 1"});
}

TEST_P(SpindleIo, AsynchronousRequests) {
  const std::string f = images_.format;
  for (const Arguments& commands : {
           Arguments{"aio_write -P 3 0 512 512 1k", "aio_flush",
                     "aio_read -P 3 0 512 512 1k", "aio_flush"},
           Arguments{"aio_read -P 4 0 512", "aio_flush", "aio_read -v 8 20"},
           Arguments{"aio_read -q -v 0 16"},
           Arguments{"aio_read 0 0 0"},
           Arguments{"aio_write 1M 512", "aio_flush", "read 0 512"},
           Arguments{"aio_read 1M 512", "aio_flush"},
           Arguments{"aio_read 7E 1"},
           Arguments{"aio_write -z 0 512 512"},
           Arguments{"aio_write -u 0 512"},
           Arguments{"aio_write -q 0 512"},
           Arguments{"aio_write -C 0 512"},
           Arguments{"aio_write -f 0 512"},
           Arguments{"aio_write -i 0 512"},
           Arguments{"aio_read -i 0 512"},
           Arguments{"aio_write -x 0 512"},
           Arguments{"aio_write 0"},
           Arguments{"aio_write 0 x"},
           Arguments{"aio_write x 5"},
           Arguments{"aio_read x 5"},
           Arguments{"aio_write 0 511"},
           Arguments{"aio_write 0 3G"},
           Arguments{"aio_write 0 1G 1G 1G"},
           Arguments{"aio_write -z 0 3G"},
           Arguments{"aio_write -z -u 0 64k"},
           Arguments{"aio_read -P 256 0 1"},
           Arguments{"aio_write -z 0 x"},
           Arguments{"aio_flush 1"},
       }) {
    Arguments arguments = {"-f", f, "IMAGE"};
    for (const std::string& command : commands)
      arguments.insert(arguments.end(), {"-c", command});
    expect_same(images_, arguments);
  }
}

TEST_P(SpindleIo, ManyAsynchronousRequestsAtOnce) {
  Arguments arguments = {"-f", images_.format, "IMAGE"};
  for (int i = 0; i < 40; ++i) {
    const std::string range = absl::StrCat(i * 20000, " 15000");
    arguments.insert(arguments.end(),
                     {"-c", absl::StrCat("aio_write -P ", i + 1, " ", range)});
  }
  arguments.insert(arguments.end(), {"-c", "aio_flush"});
  for (int i = 0; i < 40; ++i) {
    const std::string range = absl::StrCat(i * 20000, " 15000");
    arguments.insert(arguments.end(),
                     {"-c", absl::StrCat("aio_read -P ", i + 1, " ", range)});
  }
  expect_same(images_, arguments, "", /*any_order=*/true);
}

TEST_P(SpindleIo, SaysWhatTheImageIsLike) {
  expect_same_each(images_, {"length",
                             "l",
                             "info",
                             "i",
                             "map",
                             "alloc 0",
                             "write 64k 64k",
                             "map",
                             "write -z 256k 64k",
                             "discard 64k 32k",
                             "map",
                             "alloc 0 1M",
                             "alloc 64k 100k",
                             "alloc 512 2M",
                             "alloc 1",
                             "alloc x",
                             "alloc 0 x",
                             "alloc 0 1 2",
                             "alloc 1M",
                             "alloc 2M",
                             "alloc 1M 1",
                             "alloc 1000 1000",
                             "alloc",
                             "a 0",
                             "length 1",
                             "map 1",
                             "info 1"});
}

TEST_P(SpindleIo, OtherCommands) {
  const std::string f = images_.format;
  expect_same_each(images_, {"", "foo", "quit", "q", "quit 1", "sleep 1",
                             "sleep", "sleep x", "sleep -5", "sleep 0x1",
                             "sleep 1x", "help read write", "help foo"});
  expect_same(images_, {"-f", f, "IMAGE", "-c", "quit", "-c", "length"});
  expect_same(images_, {"-f", f, "IMAGE", "-c", "foo", "-c", "length"});
  expect_same(images_, {"-f", f, "IMAGE", "-c", "length", "-c", "foo"});
  expect_same(images_, {"-c", "length", "-c", "sleep 1", "-c", "quit"});
  expect_same(images_, {"-c", "read"});
}

TEST_P(SpindleIo, StandardInput) {
  const std::string f = images_.format;
  for (const char* input :
       {"", "\n\n", "length\n", "read 0 512\nlength", "length\nfoo\nlength\n",
        "quit\nlength\n", "   length   \n", "read -v 0 4\n"}) {
    expect_same(images_, {"-f", f, "IMAGE"}, input);
  }
  expect_same(images_, {"-f", f, "IMAGE"},
              "aio_write 0 512\naio_flush\nlength\n", /*any_order=*/true);
}

TEST_P(SpindleIo, Options) {
  const std::string f = images_.format;
  for (const Arguments& options : {
           Arguments{"-r", "IMAGE", "-c", "write 0 512", "-c", "discard 0 64k",
                     "-c", "aio_write 0 1", "-c", "flush", "-c", "read 0 1"},
           Arguments{"-r", "IMAGE", "-c", "write", "-c", "writev 0 512"},
           Arguments{"-U", "IMAGE", "-c", "length"},
           Arguments{"-r", "-U", "IMAGE", "-c", "length"},
           Arguments{"-n", "IMAGE", "-c", "write 1 5000"},
           Arguments{"-n", "-m", "IMAGE", "-c", "write -P 8 4096 4096"},
           Arguments{"-m", "IMAGE", "-c", "write -P 9 1 50"},
           Arguments{"-t", "none", "IMAGE", "-c", "write 512 4096"},
           Arguments{"-t", "off", "IMAGE", "-c", "write 512 4096"},
           Arguments{"-t", "writeback", "IMAGE", "-c", "write 512 4096"},
           Arguments{"-t", "writethrough", "IMAGE", "-c", "write 7 4096"},
           Arguments{"-t", "directsync", "IMAGE", "-c", "write 7 4096"},
           Arguments{"-t", "unsafe", "IMAGE", "-c", "write 7 4096"},
           Arguments{"-t", "foo", "IMAGE"},
           Arguments{"-d", "foo", "IMAGE"},
           Arguments{"-i", "foo", "IMAGE"},
           Arguments{"-i", "threads", "IMAGE", "-c", "length"},
           Arguments{"-d", "ignore", "IMAGE", "-c", "write 0 1M", "-c",
                     "discard 0 64k", "-c", "write -z -u 64k 64k", "-c", "map"},
           Arguments{"-d", "on", "IMAGE", "-c", "discard 0 64k", "-c", "map"},
           Arguments{"-d", "unmap", "IMAGE", "-c", "discard 0 64k"},
           Arguments{"-s", "IMAGE", "-c", "write -P 3 0 1M", "-c",
                     "read -P 3 0 1M"},
           Arguments{"--cmd", "length", "--read-only", "--nocache", "IMAGE"},
           Arguments{"--cmd=length", "IMAGE"},
       }) {
    Arguments arguments = {"-f", f};
    arguments.insert(arguments.end(), options.begin(), options.end());
    expect_same(images_, arguments);
  }
  expect_same(images_, {"no-such-file", "-c", "length"});
  expect_same(images_, {"-f", "foo", "IMAGE", "-c", "length"});
}

TEST_P(SpindleIo, TheFormatIsGuessed) {
  // qemu-io warns of guessed raw images.
  if (images_.format == "raw") return;
  expect_same(images_, {"IMAGE", "-c", "read 0 64k", "-c", "info"});
  expect_same(images_, {"-s", "IMAGE", "-c", "write 64k 64k", "-c", "info"});
}

// What is ours alone: the words.
TEST(SpindleIoWords, UsageIsPrintedForWhatCannotBeUnderstood) {
  for (const Arguments& arguments : {Arguments{"a", "b"}, Arguments{"-x"},
                                     Arguments{"-c"}, Arguments{"--help"}}) {
    Arguments all = arguments;
    all.insert(all.begin(), our_program());
    const auto result = testing::run_tool_apart(all);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->exit_code, arguments[0] == "--help" ? 0 : 1);
    EXPECT_TRUE(absl::StartsWith(result->output, "Usage: spindle-io"));
  }
}

TEST(SpindleIoWords, HelpListsEveryCommandAndExplainsEach) {
  const auto list = testing::run_tool_apart({our_program(), "-c", "help"});
  ASSERT_TRUE(list.ok());
  for (const char* name :
       {"aio_flush", "aio_read", "aio_write", "alloc", "discard", "flush",
        "help", "info", "length", "map", "quit", "read", "readv", "sleep",
        "write", "writev"}) {
    EXPECT_TRUE(absl::StrContains(absl::StrCat("\n", list->output),
                                  absl::StrCat("\n", name, " ")))
        << name;
    const auto one = testing::run_tool_apart(
        {our_program(), "-c", absl::StrCat("help ", name)});
    ASSERT_TRUE(one.ok());
    EXPECT_TRUE(absl::StartsWith(one->output, absl::StrCat(name, " ")));
    EXPECT_EQ(one->exit_code, 0);
  }
}

TEST(SpindleIoSizes, AreWholeSectors) {
  for (const char* size : {"0", "1", "511", "1000", "1048577"}) {
    const Twins images("raw");
    for (const std::string& path : {images.ours, images.theirs}) {
      ASSERT_TRUE(testing::write_file(path, {}).ok());
      ASSERT_EQ(::truncate(path.c_str(), std::atoll(size)), 0);
    }
    expect_same_each(images, {"length", "map", "alloc 0 1", "alloc 0 512",
                              "read 0 1", "read 0 512", "read -v 500 12",
                              "aio_read 0 512", "read 1024 1"});
  }
}

TEST(SpindleIoCompressed, WritesWholeClusters) {
  const Twins images("qcow2");
  images.create("1000k");
  expect_same_each(
      images,
      {"write -c 0 64k", "read -P 0xcd 0 64k", "write -c 512 512",
       "write -c -P 3 64k 128k", "write -c 0 1000", "write -c 1 512",
       "write -c 960k 40k", "write -c -z 0 64k", "read -P 3 64k 128k", "map"});
  const Twins raw("raw");
  raw.create("1M");
  expect_same_each(raw, {"write -c 0 64k", "read -b 0 512", "read -b 0 511",
                         "write -b 0 512", "write -b 1 512"});
}

TEST(SpindleIoBacking, MapAndAllocSeeTheOverlayOnly) {
  const std::string base = temporary_path("base");
  ASSERT_TRUE(testing::qemu_create({.image = {base, "qcow2"},
                                    .size_bytes = 1 << 20,
                                    .options = "",
                                    .backing = {}})
                  .ok());
  ASSERT_TRUE(testing::qemu_io({base, "qcow2"}, {"write 0 256k"}).ok());
  const Twins images("qcow2");
  images.create("2M",
                absl::StrCat("backing_file=", base, ",backing_fmt=qcow2"));
  expect_same_each(
      images, {"map", "alloc 0 64k", "write -P 2 100k 1k", "write -z 192k 64k",
               "map", "alloc 0 2M", "read -v 100k 9"});
  ::unlink(base.c_str());
}

}  // namespace
}  // namespace spindle

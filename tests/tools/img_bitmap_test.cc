// spindle-img bitmap, and the bitmaps that info lists, beside qemu-img.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "tests/support/qemu_bitmaps.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using testing::run_tool;
using testing::ToolResult;
using Arguments = std::vector<std::string>;

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
}

ToolResult run(Arguments arguments) {
  const auto result = run_tool(arguments);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : ToolResult();
}

// Two images of one history, one by each program.
class Pair {
 public:
  explicit Pair(const std::string& options = "cluster_size=4k") {
    for (const std::string& path : {ours_, theirs_}) create(path, options);
  }
  ~Pair() {
    for (const std::string& path : {ours_, theirs_}) ::unlink(path.c_str());
  }

  static void create(const std::string& path, const std::string& options) {
    EXPECT_EQ(run({"qemu-img", "create", "-q", "-f", "qcow2", "-o", options,
                   path, "1M"})
                  .exit_code,
              0);
  }
  // Of `arguments` FILE is the image.  Both say the same, and have the same.
  void expect_same(Arguments arguments) const {
    SCOPED_TRACE(absl::StrJoin(arguments, " "));
    const ToolResult mine = run_on(our_program(), arguments, ours_);
    const ToolResult yours = run_on("qemu-img", arguments, theirs_);
    EXPECT_EQ(mine.exit_code, yours.exit_code);
    EXPECT_EQ(absl::StrReplaceAll(mine.output, {{"spindle-img:", "qemu-img:"},
                                                {ours_, theirs_}}),
              yours.output);
    expect_same_info();
  }
  void expect_same_info() const {
    // The same program on both, and both on one.
    const std::string list = bitmaps(theirs_);
    EXPECT_EQ(bitmaps(ours_), list);
    for (const char* output : {"human", "json"}) {
      EXPECT_EQ(run({our_program(), "info", "--output", output, ours_}).output,
                run({"qemu-img", "info", "--output", output, ours_}).output);
    }
  }
  void write(const std::string& range) const {
    for (const std::string& path : {ours_, theirs_}) {
      EXPECT_TRUE(
          testing::qemu_io({path, "qcow2"}, {absl::StrCat("write ", range)})
              .ok());
    }
  }
  void expect_same_bits(const std::string& name) const {
    const auto mine = testing::qemu_dirty_ranges(ours_, name);
    const auto yours = testing::qemu_dirty_ranges(theirs_, name);
    ASSERT_TRUE(mine.ok() && yours.ok()) << mine.status() << yours.status();
    EXPECT_TRUE(*mine == *yours) << name;
    EXPECT_FALSE(mine->empty()) << name;
  }
  const std::string& ours() const { return ours_; }

 private:
  static ToolResult run_on(const std::string& program, Arguments arguments,
                           const std::string& path) {
    for (std::string& argument : arguments) {
      if (argument == "FILE") argument = path;
    }
    arguments.insert(arguments.begin(), program);
    return run(arguments);
  }
  static std::string bitmaps(const std::string& path) {
    const auto list = testing::qemu_bitmap_list(path);
    return list.ok() ? *list : list.status().ToString();
  }

  const std::string ours_ = testing::tmpfs_path("ours");
  const std::string theirs_ = testing::tmpfs_path("theirs");
};

TEST(Bitmap, DoesWhatQemuDoes) {
  const Pair pair;
  pair.expect_same_info();
  pair.expect_same({"bitmap", "--add", "FILE", "first"});
  pair.expect_same(
      {"bitmap", "--add", "-g", "64k", "-f", "qcow2", "FILE", "b"});
  pair.write("10000 50000");
  pair.expect_same({"bitmap", "--disable", "FILE", "b"});
  pair.write("500k 5000");
  pair.expect_same_bits("b");
  pair.expect_same_bits("first");
  // In the order of the command line.
  pair.expect_same({"bitmap", "--add", "--merge", "b", "--disable", "--merge",
                    "first", "FILE", "both"});
  pair.expect_same_bits("both");
  pair.expect_same({"bitmap", "--enable", "FILE", "b"});
  pair.expect_same({"bitmap", "--clear", "FILE", "b"});
  pair.write("0 512");
  pair.expect_same_bits("b");
  pair.expect_same({"bitmap", "--remove", "FILE", "first"});
  pair.expect_same({"bitmap", "--remove", "--add", "--disable", "FILE", "b"});
  pair.expect_same({"bitmap", "--remove", "FILE", "b"});
  pair.expect_same({"bitmap", "--remove", "FILE", "both"});
  EXPECT_TRUE(testing::qemu_check({pair.ours(), "qcow2"}).ok());
}

TEST(Bitmap, MergesFromAnotherImage) {
  const Pair pair;
  const std::string source = testing::tmpfs_path("source");
  Pair::create(source, "cluster_size=64k");
  ASSERT_EQ(run({"qemu-img", "bitmap", "--add", source, "there"}).exit_code, 0);
  ASSERT_TRUE(testing::qemu_io({source, "qcow2"}, {"write 300k 1"}).ok());
  pair.expect_same({"bitmap", "--add", "--merge", "there", "-b", source, "-F",
                    "qcow2", "FILE", "here"});
  pair.expect_same_bits("here");
  pair.expect_same({"bitmap", "--merge", "none", "-b", source, "FILE", "here"});
  ASSERT_EQ(run({"qemu-img", "resize", "-q", source, "2M"}).exit_code, 0);
  pair.expect_same(
      {"bitmap", "--merge", "there", "-b", source, "FILE", "here"});
  ::unlink(source.c_str());
}

TEST(Bitmap, RefusesAsQemuDoes) {
  const Pair pair;
  pair.expect_same({"bitmap", "--add", "FILE", "b"});
  for (const Arguments& arguments : std::vector<Arguments>{
           {},
           {"FILE", "b"},
           {"--add", "FILE"},
           {"--add", "FILE", "b", "c"},
           {"--add", "FILE", "b"},
           {"--add", "FILE", ""},
           {"--remove", "FILE", "none"},
           {"--clear", "FILE", "none"},
           {"--enable", "FILE", "none"},
           {"--disable", "FILE", "none"},
           {"--merge", "none", "FILE", "b"},
           {"--merge", "b", "FILE", "none"},
           {"--clear", "-g", "4k", "FILE", "b"},
           {"--clear", "-b", "x", "FILE", "b"},
           {"--clear", "-F", "raw", "FILE", "b"},
           {"--add", "-g", "100", "FILE", "c"},
           {"--add", "-g", "many", "FILE", "c"},
           {"--merge", "b", "-b", "/nonexistent/image", "FILE", "b"},
           // What comes first is done all the same.
           {"--add", "--merge", "none", "FILE", "left"},
       }) {
    Arguments whole = {"bitmap"};
    whole.insert(whole.end(), arguments.begin(), arguments.end());
    pair.expect_same(whole);
  }
}

TEST(Bitmap, SaysWhereNoneCanBeKept) {
  const std::string raw = testing::tmpfs_path("raw");
  ASSERT_EQ(run({"qemu-img", "create", "-q", "-f", "raw", raw, "1M"}).exit_code,
            0);
  const ToolResult added =
      run({our_program(), "bitmap", "--add", "-f", "raw", raw, "b"});
  EXPECT_EQ(added.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(added.output,
                                "Operation add on bitmap b failed: Can't store "
                                "persistent bitmaps to"))
      << added.output;
  const ToolResult removed =
      run({our_program(), "bitmap", "--remove", "-f", "raw", raw, "b"});
  EXPECT_EQ(removed.output,
            "spindle-img: Operation remove on bitmap b failed: Dirty bitmap "
            "'b' not found\n");
  ::unlink(raw.c_str());
  const Pair old("compat=0.10");
  const ToolResult version2 =
      run({our_program(), "bitmap", "--add", old.ours(), "b"});
  EXPECT_TRUE(absl::StrContains(version2.output,
                                "Cannot store dirty bitmaps in qcow2 v2 files"))
      << version2.output;
}

TEST(Bitmap, FoundInUseIsListedAndRemoved) {
  const Pair pair;
  pair.expect_same({"bitmap", "--add", "FILE", "b"});
  // Nobody closes the image.
  run({"sh", "-c",
       absl::StrCat("qemu-io -f qcow2 -c 'write 0 4k' -c 'sleep 100000' ",
                    pair.ours(),
                    " >/dev/null & p=$!; sleep 0.5; kill -9 $p; wait $p")});
  for (const char* output : {"human", "json"}) {
    const ToolResult info =
        run({our_program(), "info", "--output", output, pair.ours()});
    EXPECT_EQ(
        info.output,
        run({"qemu-img", "info", "--output", output, pair.ours()}).output);
    EXPECT_TRUE(absl::StrContains(info.output, "in-use"));
  }
  for (const char* action : {"--clear", "--enable", "--disable"}) {
    EXPECT_EQ(
        absl::StrReplaceAll(
            run({our_program(), "bitmap", action, pair.ours(), "b"}).output,
            {{"spindle-img:", "qemu-img:"}}),
        run({"qemu-img", "bitmap", action, pair.ours(), "b"}).output);
  }
  EXPECT_EQ(
      run({our_program(), "bitmap", "--remove", pair.ours(), "b"}).exit_code,
      0);
  EXPECT_EQ(*testing::qemu_bitmap_list(pair.ours()), "");
  EXPECT_TRUE(testing::qemu_check({pair.ours(), "qcow2"}).ok());
}

// Converts FILE by both programs; the same exit code, lines and bitmaps.
void expect_same_copies(const Arguments& flags, const std::string& source) {
  const std::string mine = testing::tmpfs_path("mine");
  const std::string yours = testing::tmpfs_path("yours");
  const auto convert = [&](const std::string& program,
                           const std::string& target) {
    Arguments arguments = {program, "convert"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    arguments.insert(arguments.end(), {source, target});
    return run(arguments);
  };
  const ToolResult by_us = convert(our_program(), mine);
  const ToolResult by_qemu = convert("qemu-img", yours);
  EXPECT_EQ(by_us.exit_code, by_qemu.exit_code) << by_us.output;
  EXPECT_EQ(absl::StrReplaceAll(by_us.output, {{"spindle-img", "qemu-img"}}),
            by_qemu.output);
  if (by_us.exit_code == 0) {
    const auto list = testing::qemu_bitmap_list(mine);
    ASSERT_TRUE(list.ok());
    EXPECT_EQ(*list, *testing::qemu_bitmap_list(yours));
    for (const char* name : {"on", "off"}) {
      if (!absl::StrContains(*list, absl::StrCat(name, " "))) continue;
      EXPECT_TRUE(*testing::qemu_dirty_ranges(mine, name) ==
                  *testing::qemu_dirty_ranges(source, name));
    }
    EXPECT_TRUE(testing::qemu_check({mine, "qcow2"}).ok());
  }
  ::unlink(mine.c_str());
  ::unlink(yours.c_str());
}

TEST(Bitmap, ConvertCopiesThem) {
  const std::string source = testing::tmpfs_path("source");
  Pair::create(source, "cluster_size=64k");
  for (const Arguments& add : {Arguments{"--add", "-g", "4k", source, "on"},
                               Arguments{"--add", source, "off"}}) {
    Arguments arguments = {"qemu-img", "bitmap"};
    arguments.insert(arguments.end(), add.begin(), add.end());
    ASSERT_EQ(run(arguments).exit_code, 0);
  }
  ASSERT_TRUE(testing::qemu_io({source, "qcow2"}, {"write 5k 100k"}).ok());
  ASSERT_EQ(run({"qemu-img", "bitmap", "--disable", source, "off"}).exit_code,
            0);
  ASSERT_TRUE(testing::qemu_io({source, "qcow2"}, {"write 600k 1"}).ok());
  for (const Arguments& flags : std::vector<Arguments>{
           {"-O", "qcow2"},
           {"--bitmaps", "-O", "qcow2"},
           {"--bitmaps", "-c", "-O", "qcow2", "-o", "cluster_size=512"},
           {"--bitmaps", "-O", "raw"},
           {"--bitmaps", "-O", "qcow2", "-o", "compat=0.10"},
           {"--bitmaps", "-f", "raw", "-O", "qcow2"},
           {"--skip-broken-bitmaps", "-O", "qcow2"}}) {
    SCOPED_TRACE(absl::StrJoin(flags, " "));
    expect_same_copies(flags, source);
  }
  run({"sh", "-c",
       absl::StrCat("qemu-io -f qcow2 -c 'write 0 4k' -c 'sleep 100000' ",
                    source,
                    " >/dev/null & p=$!; sleep 0.5; kill -9 $p; wait $p")});
  ASSERT_EQ(run({"qemu-img", "bitmap", "--remove", source, "off"}).exit_code,
            0);
  expect_same_copies({"--bitmaps", "-O", "qcow2"}, source);
  expect_same_copies({"--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2"},
                     source);
  ::unlink(source.c_str());
}

}  // namespace
}  // namespace spindle

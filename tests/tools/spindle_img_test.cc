// spindle-img as a program, beside qemu-img.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using ::spindle::testing::run_tool;
using ::spindle::testing::temporary_path;
using ::spindle::testing::ToolResult;
using Arguments = std::vector<std::string>;

std::string our_program() {
  const char* root = std::getenv("TEST_SRCDIR");
  const char* workspace = std::getenv("TEST_WORKSPACE");
  return absl::StrCat(root, "/", workspace, "/tools/spindle-img");
}

ToolResult run(const std::string& program, Arguments arguments) {
  arguments.insert(arguments.begin(), program);
  const auto result = run_tool(arguments);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : ToolResult();
}
ToolResult ours(const Arguments& arguments) {
  return run(our_program(), arguments);
}
ToolResult qemu(const Arguments& arguments) {
  return run("qemu-img", arguments);
}

std::string join(const Arguments& arguments) {
  std::string text;
  for (const std::string& argument : arguments)
    absl::StrAppend(&text, argument, " ");
  return text;
}

// Expects the same lines and the same exit code from both.
void expect_same(const Arguments& arguments) {
  SCOPED_TRACE(join(arguments));
  const ToolResult theirs = qemu(arguments);
  const ToolResult mine = ours(arguments);
  EXPECT_EQ(mine.exit_code, theirs.exit_code);
  EXPECT_EQ(absl::StrReplaceAll(mine.output, {{"spindle-img:", "qemu-img:"}}),
            theirs.output);
}

void expect_same_info(const std::string& path, const Arguments& more = {}) {
  for (const Arguments& form :
       {Arguments{"info"}, Arguments{"info", "--output=json"}}) {
    Arguments arguments = form;
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.push_back(path);
    expect_same(arguments);
  }
}

std::string make(const Arguments& options, const std::string& size = "10M") {
  const std::string path = temporary_path("image");
  Arguments arguments = {"create", "-q"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  arguments.insert(arguments.end(), {path, size});
  const ToolResult result = qemu(arguments);
  EXPECT_EQ(result.exit_code, 0) << result.output;
  return path;
}

void write_bytes(const std::string& path, uint64_t offset,
                 const std::string& bytes) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(offset));
  file << bytes;
}

// ---- info -------------------------------------------------------------------

TEST(Info, EqualsQemusForQcow2) {
  expect_same_info(make({"-f", "qcow2"}));
  expect_same_info(make({"-f", "qcow2", "-o", "compat=0.10"}));
  expect_same_info(
      make({"-f", "qcow2", "-o", "cluster_size=2M,refcount_bits=64"}, "1T"));
  expect_same_info(
      make({"-f", "qcow2", "-o", "cluster_size=512,lazy_refcounts=on"}, "1"));
  expect_same_info(make({"-f", "qcow2", "-o", "preallocation=metadata"}, "0"));
  expect_same_info(
      make({"-f", "qcow2", "-o", "extended_l2=on,compression_type=zstd"}));
}

TEST(Info, EqualsQemusForFeaturesThatCannotBeOpened) {
  const std::string data = temporary_path("data");
  expect_same_info(
      make({"-f", "qcow2", "-o", absl::StrCat("data_file=", data)}));
  expect_same_info(
      make({"-f", "qcow2", "-o",
            absl::StrCat("data_file=", data, ",data_file_raw=on")}));
}

TEST(Info, EqualsQemusForDirtyAndCorruptImages) {
  const std::string dirty = make({"-f", "qcow2", "-o", "lazy_refcounts=on"});
  write_bytes(dirty, 79, "\x01");
  expect_same_info(dirty);
  const std::string corrupt = make({"-f", "qcow2"});
  write_bytes(corrupt, 79, "\x02");
  expect_same_info(corrupt);
}

TEST(Info, EqualsQemusForRaw) {
  for (const char* size : {"0", "1000", "1M", "999k", "1000k", "1023M", "7T"}) {
    expect_same_info(make({"-f", "raw"}, size));
    expect_same_info(make({"-f", "raw"}, size), {"-f", "raw"});
  }
}

TEST(Info, EqualsQemusForChains) {
  const std::string base = make({"-f", "qcow2"});
  const std::string relative = base.substr(base.rfind('/') + 1);
  const std::string middle =
      make({"-f", "qcow2", "-b", relative, "-F", "qcow2"});
  const std::string top = make({"-f", "qcow2", "-b", middle, "-F", "qcow2"});
  for (const std::string& path : {base, middle, top}) {
    expect_same_info(path);
    expect_same_info(path, {"--backing-chain"});
    expect_same_info(path, {"-U", "-f", "qcow2"});
  }
}

TEST(Info, OpensNeitherBackingNorDataFile) {
  const std::string overlay =
      make({"-u", "-f", "qcow2", "-b", "/no/such/file", "-F", "raw"});
  expect_same_info(overlay);
  EXPECT_EQ(ours({"info", "--backing-chain", overlay}).exit_code, 1);
  const std::string data = temporary_path("data");
  const std::string image =
      make({"-f", "qcow2", "-o", absl::StrCat("data_file=", data)});
  ASSERT_EQ(::unlink(data.c_str()), 0);
  EXPECT_EQ(ours({"info", image}).exit_code, 0);
}

TEST(Info, EndsAtALoop) {
  const std::string path = temporary_path("loop");
  ASSERT_EQ(qemu({"create", "-q", "-u", "-f", "qcow2", "-b", path, "-F",
                  "qcow2", absl::StrCat(path, ".2"), "1M"})
                .exit_code,
            0);
  ASSERT_EQ(qemu({"create", "-q", "-u", "-f", "qcow2", "-b",
                  absl::StrCat(path, ".2"), "-F", "qcow2", path, "1M"})
                .exit_code,
            0);
  const ToolResult result = ours({"info", "--backing-chain", path});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(result.output, "loop")) << result.output;
}

TEST(Info, SaysWhatItCouldNotOpen) {
  expect_same({"info", temporary_path("no-such-file")});
  expect_same({"info", "--output=xml", "x"});
  const std::string raw = make({"-f", "raw"});
  const ToolResult result = ours({"info", "-f", "qcow2", raw});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_TRUE(absl::StartsWith(
      result.output, absl::StrCat("spindle-img: Could not open '", raw, "': ")))
      << result.output;
  expect_same({"info", "-f", "no-such-format", raw});
}

// ---- create -----------------------------------------------------------------

// Both write to the same name, one after the other: line and file must be
// equal.
void expect_same_create(const Arguments& options, const Arguments& size) {
  SCOPED_TRACE(join(options));
  const std::string path = temporary_path("new");
  const std::string kept = temporary_path("kept");
  Arguments arguments = {"create"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  arguments.push_back(path);
  arguments.insert(arguments.end(), size.begin(), size.end());
  const ToolResult theirs = qemu(arguments);
  ASSERT_EQ(theirs.exit_code, 0) << theirs.output;
  ASSERT_EQ(std::rename(path.c_str(), kept.c_str()), 0);
  const ToolResult mine = ours(arguments);
  ASSERT_EQ(mine.exit_code, 0) << mine.output;
  EXPECT_EQ(mine.output, theirs.output);
  const ToolResult compared = run("cmp", {path, kept});
  EXPECT_EQ(compared.exit_code, 0) << compared.output;
}

TEST(Create, MakesTheSameFileAndPrintsTheSameLine) {
  const std::string base = make({"-f", "qcow2"}, "1000000");
  expect_same_create({"-f", "raw"}, {"1000"});
  expect_same_create({}, {"1.5k"});
  expect_same_create({"-f", "qcow2"}, {"10M"});
  expect_same_create({"-f", "qcow2", "-o", "size=5M"}, {});
  expect_same_create({"-q", "-f", "qcow2"}, {"10M"});
  expect_same_create({"-f", "qcow2", "-o", "cluster_size=4k,compat=v2"},
                     {"1T"});
  expect_same_create(
      {"-f", "qcow2", "-o", "cluster_size=4k", "-o", "lazy_refcounts=on"},
      {"513"});
  expect_same_create(
      {"-f", "qcow2", "-o", "preallocation=metadata,refcount_bits=1"}, {"3M"});
  expect_same_create({"-f", "qcow2", "-o", "preallocation=falloc"}, {"3M"});
  expect_same_create({"-f", "qcow2", "-o", "preallocation=full"}, {"3M"});
  expect_same_create({"-f", "qcow2", "-b", base, "-F", "qcow2"}, {});
  expect_same_create({"-f", "qcow2", "-b", base, "-F", "qcow2"}, {"7777"});
  expect_same_create({"-f", "qcow2", "-b", base, "-F", "raw"}, {});
  expect_same_create({"-f", "qcow2", "-u", "-b", "no,such", "-F", "raw"},
                     {"1M"});
  expect_same_create(
      {"-f", "qcow2", "-o",
       absl::StrCat("backing_file=", base, ",backing_fmt=qcow2")},
      {});
}

TEST(Create, RefusesAsQemuDoes) {
  const std::string path = temporary_path("new");
  expect_same({"create", "-f", "qcow2", path});
  expect_same({"create", "-f", "qcow2", path, "8E"});
  expect_same({"create", "-f", "qcow2", path, "1q"});
  expect_same({"create", "-f", "qcow2", "-o", "size=1M", path, "1M"});
  expect_same({"create", "-f", "qcow2", "-o", "no_such=1", path, "1M"});
  expect_same({"create", "-f", "no-such-format", path, "1M"});
  expect_same({"create", "-f", "qcow2", "-u", "-b", "x", path, "1M"});
  expect_same({"create", "-f", "qcow2", "-b", "", path, "1M"});
  expect_same({"create", "-f", "qcow2", "-b", path, "-F", "qcow2", path, "1M"});
  expect_same({"create", "-f", "raw", "-b", "x", "-F", "raw", path, "1M"});
}

TEST(Create, LeavesAnOldImageAloneIfTheOptionsAreWrong) {
  const std::string path = make({"-f", "qcow2"});
  const std::string kept = temporary_path("kept");
  ASSERT_EQ(run("cp", {path, kept}).exit_code, 0);
  for (const char* options :
       {"cluster_size=1000", "extended_l2=on,cluster_size=4k",
        "refcount_bits=3"}) {
    EXPECT_EQ(
        ours({"create", "-f", "qcow2", "-o", options, path, "1M"}).exit_code,
        1);
    EXPECT_EQ(run("cmp", {path, kept}).exit_code, 0) << options;
  }
}

TEST(Create, PreallocationReservesSpace) {
  for (const char* format : {"raw", "qcow2"}) {
    for (const char* mode : {"falloc", "full"}) {
      const std::string path = temporary_path("new");
      ASSERT_EQ(ours({"create", "-q", "-f", format, "-o",
                      absl::StrCat("preallocation=", mode), path, "8M"})
                    .exit_code,
                0);
      struct stat facts = {};
      ASSERT_EQ(::stat(path.c_str(), &facts), 0);
      EXPECT_GE(facts.st_blocks * 512, 8 << 20) << format << " " << mode;
      ::unlink(path.c_str());
    }
  }
}

// Under a limit on the size of files.
void expect_too_large(const Arguments& options, const std::string& path) {
  Arguments arguments = {"--fsize=1048576", our_program(), "create", "-q"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  arguments.insert(arguments.end(), {path, "8M"});
  SCOPED_TRACE(join(arguments));
  const ToolResult mine = run("prlimit", arguments);
  EXPECT_EQ(mine.exit_code, 1) << mine.output;
  EXPECT_TRUE(absl::StrContains(mine.output, "File too large")) << mine.output;
}

const Arguments kTooLarge[] = {
    {"-f", "raw"},
    {"-f", "raw", "-o", "preallocation=falloc"},
    {"-f", "raw", "-o", "preallocation=full"},
    {"-f", "qcow2", "-o", "preallocation=metadata"},
    {"-f", "qcow2", "-o", "preallocation=falloc"},
    {"-f", "qcow2", "-o", "preallocation=full"},
};

// As qemu-img: of a raw image the file stays.
TEST(Create, LeavesNoHalfFormattedImageBehind) {
  for (const Arguments& options : kTooLarge) {
    const std::string path = temporary_path("new");
    expect_too_large(options, path);
    EXPECT_EQ(::access(path.c_str(), F_OK) == 0, options[1] == "raw")
        << join(options);
    ::unlink(path.c_str());
  }
  // Nor where the options are wrong.
  const std::string path = temporary_path("new");
  EXPECT_EQ(ours({"create", "-f", "qcow2", "-o", "refcount_bits=3", path, "1M"})
                .exit_code,
            1);
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
}

TEST(Create, EmptiesAFileThatWasThereWhenItFailsHalfWay) {
  for (const Arguments& options : kTooLarge) {
    SCOPED_TRACE(join(options));
    const std::string path = temporary_path("old");
    std::ofstream(path) << "something";
    const std::string link = temporary_path("link");
    ASSERT_EQ(::symlink(path.c_str(), link.c_str()), 0);
    struct stat before = {};
    ASSERT_EQ(::stat(path.c_str(), &before), 0);
    expect_too_large(options, link);
    struct stat after = {};
    ASSERT_EQ(::stat(link.c_str(), &after), 0);
    EXPECT_EQ(after.st_ino, before.st_ino);
    EXPECT_EQ(after.st_size, 0);
    ::unlink(link.c_str());
    ::unlink(path.c_str());
  }
}

TEST(Create, LeavesAFileThatIsInUse) {
  const std::string path = make({"-f", "qcow2"});
  const std::string kept = temporary_path("kept");
  ASSERT_EQ(run("cp", {path, kept}).exit_code, 0);
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  // Nobody else may resize it.
  struct flock lock = {};
  lock.l_type = F_RDLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = 203;
  lock.l_len = 1;
  ASSERT_EQ(::fcntl(fd, F_OFD_SETLK, &lock), 0);
  EXPECT_EQ(ours({"create", "-f", "qcow2", path, "1M"}).exit_code, 1);
  EXPECT_EQ(run("cmp", {path, kept}).exit_code, 0);
  ::close(fd);
}

TEST(Create, ListsOptions) {
  const ToolResult result = ours({"create", "-f", "qcow2", "-o", "help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_TRUE(absl::StrContains(result.output, "  cluster_size=<size>    - "))
      << result.output;
}

// ---- snapshot ---------------------------------------------------------------

TEST(Snapshot, ListsAsQemuDoes) {
  const std::string path = make({"-f", "qcow2"});
  expect_same({"snapshot", "-l", path});
  for (const char* name : {"first", "a-rather-long-name-of-a-snapshot", "7"})
    ASSERT_EQ(qemu({"snapshot", "-c", name, path}).exit_code, 0);
  expect_same({"snapshot", "-l", path});
  expect_same({"snapshot", path});
  expect_same_info(path);
  // A format without snapshots has none.
  expect_same({"snapshot", "-l", make({"-f", "raw"})});
}

TEST(Snapshot, MakesReturnsToAndDeletes) {
  const std::string path = make({"-f", "qcow2"});
  const auto write = [&](int pattern) {
    return testing::qemu_io({path, "qcow2"},
                            {absl::StrCat("write -P ", pattern, " 0 1M")});
  };
  const auto holds = [&](int pattern) {
    return testing::qemu_io({path, "qcow2"},
                            {absl::StrCat("read -P ", pattern, " 0 1M")},
                            {.read_only = true});
  };
  ASSERT_TRUE(write(1).ok());
  EXPECT_EQ(ours({"snapshot", "-c", "one", path}).exit_code, 0);
  ASSERT_TRUE(write(2).ok());
  EXPECT_EQ(ours({"snapshot", "-c", "two", path}).exit_code, 0);
  expect_same({"snapshot", "-l", path});
  EXPECT_EQ(ours({"snapshot", "-a", "one", path}).exit_code, 0);
  EXPECT_TRUE(holds(1).ok());
  EXPECT_EQ(ours({"snapshot", "-d", "1", path}).exit_code, 0);
  EXPECT_EQ(ours({"snapshot", "-a", "two", path}).exit_code, 0);
  EXPECT_TRUE(holds(2).ok());
  expect_same({"snapshot", "-l", path});
  EXPECT_TRUE(testing::qemu_check({path, "qcow2"}).ok());
}

TEST(Snapshot, RefusesWhatIsNotThere) {
  const std::string path = make({"-f", "qcow2"});
  for (const char* option : {"-a", "-d"}) {
    const ToolResult result = ours({"snapshot", option, "none", path});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_TRUE(absl::StrContains(result.output, "'none'")) << result.output;
  }
  const ToolResult both = ours({"snapshot", "-l", "-c", "x", path});
  EXPECT_EQ(both.exit_code, 1);
  EXPECT_TRUE(
      absl::StrContains(both.output, "Cannot mix '-l', '-a', '-c', '-d'"))
      << both.output;
}

// ---- check ------------------------------------------------------------------

uint64_t read_big64(const std::string& path, uint64_t offset) {
  std::ifstream file(path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  uint64_t value = 0;
  for (int i = 0; i < 8; ++i)
    value = value << 8 | static_cast<uint8_t>(file.get());
  return value;
}

// An image with some data; where its first refcount block and L2 table stand.
struct Checked {
  Checked() : path(make({"-f", "qcow2"})) {
    EXPECT_EQ(run("qemu-io", {"-c", "write 0 1M", path}).exit_code, 0);
    block = read_big64(path, read_big64(path, 48));
    l2 = read_big64(path, read_big64(path, 40)) & 0xfffffffffffe00;
  }
  const std::string path;
  uint64_t block = 0;
  uint64_t l2 = 0;
};

std::vector<std::string> sorted_lines(const std::string& output) {
  std::vector<std::string> lines = absl::StrSplit(
      absl::StrReplaceAll(output, {{"spindle-img:", "qemu-img:"}}), '\n');
  std::sort(lines.begin(), lines.end());
  return lines;
}

void expect_same_check(const std::string& path) {
  for (const Arguments& form :
       {Arguments{"check"}, Arguments{"check", "--output=json"},
        Arguments{"check", "-q", "-f", "qcow2", "-U"}}) {
    Arguments arguments = form;
    arguments.push_back(path);
    const ToolResult theirs = qemu(arguments);
    const ToolResult mine = ours(arguments);
    SCOPED_TRACE(join(arguments));
    EXPECT_EQ(mine.exit_code, theirs.exit_code);
    // Where the two streams meet depends on when each is written out.
    EXPECT_EQ(sorted_lines(mine.output), sorted_lines(theirs.output));
  }
}

// The same repair of copies, with the same words, and QEMU's verdict on ours.
void expect_same_repair(const std::string& path, const std::string& what,
                        int exit_code, int exit_code_afterwards) {
  for (const char* output : {"--output=human", "--output=json"}) {
    SCOPED_TRACE(absl::StrCat(what, " ", output));
    std::vector<std::string> outputs;
    for (const bool is_ours : {false, true}) {
      // Under one name: it is printed.
      const std::string copy = absl::StrCat(path, ".repaired");
      EXPECT_EQ(run("cp", {path, copy}).exit_code, 0);
      const Arguments arguments = {"check", output, "-r", what, copy};
      const ToolResult result = is_ours ? ours(arguments) : qemu(arguments);
      EXPECT_EQ(result.exit_code, exit_code) << result.output;
      outputs.push_back(
          absl::StrReplaceAll(result.output, {{"spindle-img:", "qemu-img:"}}));
      EXPECT_EQ(qemu({"check", copy}).exit_code, exit_code_afterwards);
    }
    EXPECT_EQ(outputs[1], outputs[0]);
  }
}

TEST(Check, EqualsQemusForSoundImages) {
  expect_same_check(Checked().path);
  expect_same_check(make({"-f", "qcow2"}, "0"));
  const Checked image;
  ASSERT_EQ(qemu({"snapshot", "-c", "one", image.path}).exit_code, 0);
  expect_same_check(image.path);
  ASSERT_EQ(ours({"check", "-r", "all", image.path}).exit_code, 0);
}

TEST(Check, EqualsQemusForLeaks) {
  const Checked counted;
  write_bytes(counted.path, counted.block + 12, std::string("\0\3", 2));
  EXPECT_EQ(ours({"check", counted.path}).exit_code,
            2);  // COPIED is wrong, too
  expect_same_check(counted.path);
  expect_same_repair(counted.path, "leaks", 0, 0);
  expect_same_repair(counted.path, "all", 0, 0);
  const Checked dropped;
  write_bytes(dropped.path, dropped.l2, std::string(8, '\0'));
  EXPECT_EQ(ours({"check", dropped.path}).exit_code, 3);
  expect_same_check(dropped.path);
  expect_same_repair(dropped.path, "leaks", 0, 0);
}

TEST(Check, EqualsQemusForCorruptions) {
  const Checked crossed;
  write_bytes(crossed.path, crossed.l2, std::string("\x80\0\0\0\0\x06\0\0", 8));
  expect_same_check(crossed.path);
  expect_same_repair(crossed.path, "leaks", 2, 2);
  expect_same_repair(crossed.path, "all", 0, 0);
  const Checked reserved;
  write_bytes(reserved.path, reserved.l2 + 7, "\x40");
  expect_same_check(reserved.path);
  expect_same_repair(reserved.path, "all", 2, 2);
  const Checked uncounted;
  write_bytes(uncounted.path, uncounted.block, std::string(2, '\0'));
  expect_same_check(uncounted.path);
  expect_same_repair(uncounted.path, "leaks", 1, 2);
}

TEST(Check, RepairsWhatMustBeRebuilt) {
  const Checked image;
  const uint64_t table = read_big64(image.path, 48);
  write_bytes(image.path, table + 6, "\x02");
  EXPECT_EQ(ours({"check", image.path}).exit_code, 1);
  expect_same_check(image.path);
  EXPECT_EQ(ours({"check", "-r", "all", image.path}).exit_code, 0);
  EXPECT_EQ(qemu({"check", image.path}).exit_code, 0);
}

TEST(Check, RepairsWhatCannotBeOpenedOtherwise) {
  const Checked image;
  write_bytes(image.path, 79, "\x03");
  expect_same_check(image.path);
  EXPECT_EQ(ours({"check", "-r", "all", image.path}).exit_code, 0);
  EXPECT_EQ(read_big64(image.path, 72), 0u);
  expect_same_check(image.path);
}

TEST(Check, RefusesAsQemuDoes) {
  const std::string raw = make({"-f", "raw"});
  expect_same({"check", raw});
  EXPECT_EQ(ours({"check", raw}).exit_code, 63);
  const Checked image;
  expect_same({"check", "-f", "raw", image.path});
  expect_same({"check", "--output=xml", image.path});
  EXPECT_EQ(ours({"check", "-r", "some", image.path}).exit_code, 1);
  expect_same({"check", "-r", "all", "-U", image.path});
  EXPECT_EQ(ours({"check", "/no/such/file"}).exit_code, 1);
  EXPECT_EQ(ours({"check"}).exit_code, 1);
}

// ---- bench ------------------------------------------------------------------

// The first line and the form of the last.
void expect_same_bench(const Arguments& options, const std::string& path) {
  SCOPED_TRACE(join(options));
  Arguments arguments = {"bench"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  arguments.push_back(path);
  const ToolResult theirs = qemu(arguments);
  const ToolResult mine = ours(arguments);
  ASSERT_EQ(theirs.exit_code, 0) << theirs.output;
  ASSERT_EQ(mine.exit_code, 0) << mine.output;
  const auto without_time = [](std::string text) {
    const size_t start = text.find("Run completed in ");
    for (size_t i = start; i < text.size(); ++i) {
      if (text[i] >= '0' && text[i] <= '9') text[i] = '0';
    }
    return text;
  };
  EXPECT_EQ(without_time(mine.output), without_time(theirs.output));
}

TEST(Bench, PrintsQemusLines) {
  for (const char* format : {"raw", "qcow2"}) {
    const std::string path = make({"-f", format});
    expect_same_bench({"-f", format, "-c", "100"}, path);
    expect_same_bench({"-f", format, "-c", "0"}, path);
    expect_same_bench({"-f", format, "-c", "50", "-d", "4", "-s", "8k", "-S",
                       "1M", "-o", "4k"},
                      path);
    expect_same_bench({"-f", format, "-c", "100", "-w", "--pattern", "7"},
                      path);
    expect_same_bench(
        {"-f", format, "-c", "100", "-w", "--flush-interval", "64"}, path);
    expect_same_bench({"-f", format, "-c", "100", "-w", "--flush-interval",
                       "64", "--no-drain"},
                      path);
    expect_same_bench({"-f", format, "-c", "10", "-s", "1", "-t", "unsafe"},
                      path);
  }
}

TEST(Bench, WritesWhatQemuReadsBack) {
  const std::string path = make({"-f", "qcow2"}, "1M");
  ASSERT_EQ(ours({"bench", "-f", "qcow2", "-w", "--pattern", "165", "-c", "256",
                  path})
                .exit_code,
            0);
  const ToolResult read =
      run("qemu-io", {"-f", "qcow2", "-c", "read -P 165 0 1M", path});
  EXPECT_EQ(read.exit_code, 0) << read.output;
  EXPECT_FALSE(absl::StrContains(read.output, "failed")) << read.output;
  const ToolResult check = qemu({"check", path});
  EXPECT_EQ(check.exit_code, 0) << check.output;
}

TEST(Bench, RefusesAsQemuDoes) {
  const std::string path = make({"-f", "raw"});
  for (const Arguments& options : std::vector<Arguments>{
           {"-c", "abc"},
           {"--flush-interval", "10"},
           {"-w", "--flush-interval", "10"},
           {"-w", "--pattern", "300"},
           {"-t", "no-such-mode"},
           {"-i", "no-such-engine"},
       }) {
    Arguments arguments = {"bench", "-f", "raw"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    arguments.push_back(path);
    expect_same(arguments);
  }
  EXPECT_EQ(ours({"bench", "-d", "0", path}).exit_code, 1);
  EXPECT_EQ(
      ours({"bench", "-f", "raw", "-o", "10M", "-c", "1", path}).exit_code, 1);
}

TEST(Bench, SweepsDepthsAndWidths) {
  const std::string path = make({"-f", "qcow2", "-o", "preallocation=full"});
  const ToolResult result = ours({"bench", "-f", "qcow2", "--sweep", "--random",
                                  "--inline", "-c", "100", path});
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_TRUE(absl::StrContains(result.output, "CPU us/op")) << result.output;
  // A heading of two lines, 16 rows, and no bar: this is no terminal.
  EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 18)
      << result.output;
  EXPECT_FALSE(absl::StrContains(result.output, "\r"));
}

// qemu-img rebase loses these zeroes in an image of version 2, in which no
// entry can say "zeroes": no row can say what is right.
TEST(Rebase, ZeroesOfAnImageWithoutABackingFileStay) {
  const std::string backing = make({"-f", "raw"}, "3M");
  ASSERT_EQ(
      run("qemu-io", {"-f", "raw", "-c", "write -P 1 0 3M", backing}).exit_code,
      0);
  for (const char* compat : {"compat=0.10", "compat=1.1"}) {
    const std::string path = make({"-f", "qcow2", "-o", compat}, "3M");
    EXPECT_EQ(ours({"rebase", "-b", backing, "-F", "raw", path}).exit_code, 0);
    const ToolResult read =
        run("qemu-io", {"-f", "qcow2", "-c", "read -P 0 0 3M", path});
    EXPECT_EQ(read.exit_code, 0) << read.output;
    EXPECT_FALSE(absl::StrContains(read.output, "failed")) << read.output;
  }
}

TEST(Program, RefusesMisuse) {
  EXPECT_EQ(ours({}).exit_code, 1);
  EXPECT_EQ(ours({"no-such-command"}).exit_code, 1);
  EXPECT_EQ(ours({"info"}).exit_code, 1);
  EXPECT_EQ(ours({"create", "--no-such-option", "x", "1M"}).exit_code, 1);
  EXPECT_EQ(ours({"--help"}).exit_code, 0);
}

}  // namespace
}  // namespace spindle

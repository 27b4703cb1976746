// External data files by spindle-img, beside qemu-img.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

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
using ::spindle::testing::qemu_io;
using ::spindle::testing::read_file;
using ::spindle::testing::run_tool;
using ::spindle::testing::run_tool_ok;
using ::spindle::testing::temporary_path;
using ::spindle::testing::ToolResult;
using Arguments = std::vector<std::string>;

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
}

// A folder of our own, so that both programs see the same names.
class DataFileTool : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = temporary_path("folder");
    ASSERT_EQ(::mkdir(folder_.c_str(), 0700), 0);
  }
  void TearDown() override {
    EXPECT_TRUE(run_tool_ok({"rm", "-r", folder_}).ok());
  }

  std::string in_folder(const std::string& name) const {
    return absl::StrCat(folder_, "/", name);
  }

  // Runs it there, with the programs' names alike in what it prints.
  ToolResult run(const std::string& program, const std::string& command) const {
    const auto result =
        run_tool({"sh", "-c",
                  absl::StrCat("cd ", folder_, " && ", program, " ", command)});
    EXPECT_TRUE(result.ok()) << result.status();
    ToolResult named = *result;
    named.output =
        absl::StrReplaceAll(named.output, {{"spindle-img:", "qemu-img:"}});
    return named;
  }
  ToolResult ours(const std::string& command) const {
    return run(our_program(), command);
  }
  ToolResult qemu(const std::string& command) const {
    return run("qemu-img", command);
  }

  std::vector<uint8_t> bytes(const std::string& name) const {
    const auto content = read_file(in_folder(name));
    EXPECT_TRUE(content.ok()) << content.status();
    return content.ok() ? *content : std::vector<uint8_t>();
  }

  // The disk's length, as qemu-img says.
  uint64_t qemu_size_of(const std::string& name) const {
    const ToolResult info = qemu(
        absl::StrCat("info --output=json ", name,
                     " | sed -n 's/.*\"virtual-size\": \\([0-9]*\\).*/\\1/p'"));
    return std::strtoull(info.output.c_str(), nullptr, 10);
  }

 private:
  std::string folder_;
};

TEST_F(DataFileTool, CreateEqualsQemus) {
  ASSERT_TRUE(run_tool_ok({"truncate", "-s", "1M", in_folder("base")}).ok());
  for (const char* command : {
           "-o data_file=d x 1M",
           "-o data_file=d,data_file_raw=on x 1M",
           "-o data_file=d,data_file_raw=off,cluster_size=4k x 1049088",
           "-o data_file=d,data_file_raw=on,cluster_size=512 x 1049088",
           "-o data_file=d,preallocation=metadata x 3M",
           "-o data_file=d,preallocation=falloc x 3M",
           "-o data_file=d,preallocation=full,refcount_bits=1 x 3M",
           "-o data_file=d,data_file_raw=on,preallocation=full x 3M",
           "-o data_file=d,data_file_raw=on,cluster_size=4k x 200M",
           "-o data_file=d,compression_type=zstd,lazy_refcounts=on x 1M",
           "-o data_file=d -b base -F raw x",
           "-o data_file=d,extended_l2=on x 3M",
           "-o data_file=d,data_file_raw=on,extended_l2=on x 3M",
           "-o data_file=d,data_file_raw=on x 0",
       }) {
    SCOPED_TRACE(command);
    const std::string create = absl::StrCat("create -f qcow2 ", command);
    const ToolResult theirs = qemu(create);
    ASSERT_EQ(theirs.exit_code, 0) << theirs.output;
    const auto their_image = bytes("x");
    const auto their_data = bytes("d");
    ::unlink(in_folder("x").c_str());
    ::unlink(in_folder("d").c_str());
    const ToolResult mine = ours(create);
    EXPECT_EQ(mine.exit_code, 0);
    EXPECT_EQ(mine.output, theirs.output);
    EXPECT_TRUE(bytes("x") == their_image);
    // QEMU may go on to the end of the last cluster; ours is the disk's length.
    auto our_data = bytes("d");
    EXPECT_EQ(our_data.size(), qemu_size_of("x"));
    our_data.resize(their_data.size());
    EXPECT_TRUE(our_data == their_data);
  }
}

TEST_F(DataFileTool, CreateRefusesWhatQemuRefuses) {
  ASSERT_TRUE(run_tool_ok({"truncate", "-s", "1M", in_folder("base")}).ok());
  for (const char* command : {
           "-o data_file_raw=on x 1M",
           "-o data_file=d,compat=0.10 x 1M",
           "-o data_file=d,data_file_raw=on -b base -F raw x 1M",
           "-o data_file=nodir/d x 1M",
           "-o data_file=d,data_file_raw=maybe x 1M",
       }) {
    SCOPED_TRACE(command);
    const std::string create = absl::StrCat("create -q -f qcow2 ", command);
    const ToolResult theirs = qemu(create);
    const ToolResult mine = ours(create);
    EXPECT_EQ(mine.exit_code, theirs.exit_code);
    EXPECT_EQ(mine.output, theirs.output);
  }
  // Those that QEMU words otherwise.
  for (const char* command : {"-o data_file=x x 1M", "-o data_file=nbd:x x 1M",
                              "-o data_file= x 1M"}) {
    SCOPED_TRACE(command);
    const std::string create = absl::StrCat("create -q -f qcow2 ", command);
    EXPECT_NE(qemu(create).exit_code, 0);
    EXPECT_NE(ours(create).exit_code, 0);
    EXPECT_NE(::access(in_folder("x").c_str(), F_OK), 0);
  }
}

TEST_F(DataFileTool, TheNameStartsWhereTheProcessIs) {
  ASSERT_EQ(qemu("create -q -f qcow2 -o data_file=d x 1M").exit_code, 0);
  const std::string elsewhere =
      absl::StrCat("convert -O raw ", in_folder("x"), " ", in_folder("out"));
  EXPECT_EQ(ours(elsewhere).exit_code, 0);
  for (const std::string& program : {our_program(), std::string("qemu-img")}) {
    const auto result = run_tool(
        {"sh", "-c", absl::StrCat("cd / && ", program, " ", elsewhere)});
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->exit_code, 1) << result->output;
  }
}

TEST_F(DataFileTool, CheckFindsWhatQemuFinds) {
  ASSERT_EQ(
      qemu("create -q -f qcow2 -o data_file=d,data_file_raw=on x 2M").exit_code,
      0);
  const auto intact = bytes("x");
  constexpr size_t kTable = 0x40000;
  const uint64_t copied = uint64_t{1} << 63;
  for (const uint64_t entry :
       {copied | 0x10000, copied | 0x20000, uint64_t{0x10000}, uint64_t{0},
        copied | 0x10001, uint64_t{1}, copied | 1, copied,
        uint64_t{1} << 62 | 0x20000, copied | 0x10200, copied | 0x10004,
        copied | uint64_t{1} << 60}) {
    for (const size_t index : {size_t{0}, size_t{1}}) {
      SCOPED_TRACE(absl::StrCat("entry ", absl::Hex(entry), " at ", index));
      auto changed = intact;
      for (size_t i = 0; i < 8; ++i)
        changed[kTable + index * 8 + i] =
            static_cast<uint8_t>(entry >> (56 - 8 * i));
      ASSERT_TRUE(testing::write_file(in_folder("x"), changed).ok());
      for (const char* command : {"check x", "check --output=json x"}) {
        const ToolResult theirs = qemu(command);
        const ToolResult mine = ours(command);
        EXPECT_EQ(mine.exit_code, theirs.exit_code);
        EXPECT_EQ(mine.output, theirs.output);
      }
    }
  }
}

TEST_F(DataFileTool, MapNamesTheDataFile) {
  for (const char* raw : {"off", "on"}) {
    SCOPED_TRACE(raw);
    ASSERT_EQ(qemu(absl::StrCat("create -q -f qcow2 -o data_file=d,",
                                "data_file_raw=", raw, " x 2M"))
                  .exit_code,
              0);
    ASSERT_EQ(run("qemu-io", "-c 'write -P 7 100k 300k' -c 'write -z 1M 64k' x")
                  .exit_code,
              0);
    for (const char* command : {"map x", "map --output=json x"})
      EXPECT_EQ(ours(command).output, qemu(command).output);
  }
}

TEST_F(DataFileTool, ConvertsBothWays) {
  ASSERT_EQ(qemu("create -q -f raw source 3M").exit_code, 0);
  const ImageFile source{in_folder("source"), "raw"};
  ASSERT_TRUE(
      qemu_io(source, {"write -P 7 100k 300k", "write -P 8 2M 64k"}).ok());
  for (const char* raw : {"off", "on"}) {
    SCOPED_TRACE(raw);
    const ToolResult made = ours(absl::StrCat(
        "convert -f raw -O qcow2 -o data_file=d,data_file_raw=", raw,
        " source x"));
    ASSERT_EQ(made.exit_code, 0) << made.output;
    EXPECT_EQ(qemu("check x").exit_code, 0);
    EXPECT_EQ(qemu("compare source x").exit_code, 0);
    if (raw == std::string("on")) {
      EXPECT_EQ(qemu("compare -f raw -F raw source d").exit_code, 0);
    }
    ASSERT_EQ(ours("convert -O raw x back").exit_code, 0);
    EXPECT_EQ(qemu("compare -f raw -F raw source back").exit_code, 0);
  }
  // No compressed clusters there.
  EXPECT_EQ(ours("convert -c -O qcow2 -o data_file=d source y").exit_code, 1);
  EXPECT_EQ(qemu("convert -c -O qcow2 -o data_file=d source y").exit_code, 1);
  // Nor snapshots.
  EXPECT_EQ(ours("snapshot -c s x").exit_code, 1);
  EXPECT_EQ(qemu("snapshot -c s x").exit_code, 1);
}

}  // namespace
}  // namespace spindle

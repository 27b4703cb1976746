// blkdebug beside QEMU's: the same configuration file, the same commands of
// qemu-io, the same answers, and the same guest data afterwards.

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using testing::temporary_path;

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-io");
}

// What the program said on its standard output, but for times.
std::string answers(const std::string& program, const std::string& format,
                    const std::string& config, const std::string& image,
                    const std::vector<std::string>& commands) {
  std::vector<std::string> arguments = {program, "-f", format};
  for (const std::string& command : commands)
    arguments.insert(arguments.end(), {"-c", command});
  arguments.push_back(absl::StrCat("blkdebug:", config, ":", image));
  const auto result = testing::run_tool_apart(arguments);
  EXPECT_TRUE(result.ok()) << result.status();
  if (!result.ok()) return "";
  return std::regex_replace(result->output, std::regex("(, 1 ops;)[^\n]*"),
                            "$1");
}

struct Case {
  const char* name;
  const char* format;
  const char* config;
  std::vector<std::string> commands;
};

const Case kCases[] = {
    {"a write fails once",
     "qcow2",
     "[inject-error]\nevent = \"write_aio\"\nerrno = \"28\"\nonce = \"on\"\n",
     {"write -P 1 256k 4k", "write -P 2 256k 4k", "read -P 2 256k 4k"}},
    {"an overwrite fails once",
     "qcow2",
     "[inject-error]\nevent = \"write_aio\"\nonce = \"on\"\n",
     {"write -P 1 0 4k", "read -P 7 0 64k", "write -P 2 0 4k",
      "read -P 2 0 4k"}},
    {"a read fails once",
     "qcow2",
     "[inject-error]\nevent = \"read_aio\"\nonce = \"on\"\n",
     {"read -P 7 0 4k", "read -P 7 0 4k"}},
    {"one sector cannot be read",
     "qcow2",
     "[inject-error]\nevent = \"read_aio\"\nsector = \"640\"\n",
     {"read 512 512", "read -P 7 0 512", "read 0 1k", "read -P 7 64k 64k",
      "read 0 512"}},
    {"a read fails after a write",
     "qcow2",
     "[set-state]\nstate = \"1\"\nevent = \"write_aio\"\nnew_state = \"2\"\n\n"
     "[inject-error]\nstate = \"2\"\nevent = \"read_aio\"\nerrno = \"61\"\n"
     "once = \"on\"\n",
     {"read -P 7 0 4k", "write -P 8 0 4k", "read 0 4k", "read -P 8 0 4k"}},
    {"an L2 table cannot be loaded",
     "qcow2",
     "[inject-error]\nevent = \"l2_load\"\nonce = \"on\"\n",
     {"read 0 4k", "read -P 7 0 4k"}},
    {"no cluster can be had",
     "qcow2",
     "[inject-error]\nevent = \"cluster_alloc\"\nerrno = \"28\"\nonce = "
     "\"on\"\n",
     {"write -P 1 512k 64k", "write -P 2 512k 64k", "read -P 2 512k 64k"}},
    {"an L2 table cannot be written once",
     "qcow2",
     "[inject-error]\nevent = \"l2_update\"\nonce = \"on\"\n",
     {"write -P 1 512k 64k", "flush", "flush", "read -P 1 512k 64k"}},
    {"reads do not meet errors of writes",
     "qcow2",
     "[inject-error]\nevent = \"read_aio\"\niotype = \"write\"\n",
     {"read -P 7 0 4k", "read -P 7 0 4k", "write -P 3 0 4k"}},
    {"raw: a read fails once",
     "raw",
     "[inject-error]\nevent = \"read_aio\"\nonce = \"on\"\n",
     {"read 0 4k", "read -P 7 0 4k"}},
    {"raw: a write fails once",
     "raw",
     "[inject-error]\nevent = \"write_aio\"\nerrno = \"28\"\nonce = \"on\"\n",
     {"write -P 1 0 4k", "read -P 7 0 4k", "write -P 2 0 4k"}},
    {"raw: pwritev",
     "raw",
     "[inject-error]\nevent = \"pwritev\"\nonce = \"on\"\n",
     {"read -P 7 0 4k", "write -P 1 0 4k", "write -P 2 4k 4k"}},
    {"raw: zeroes fail once",
     "raw",
     "[inject-error]\nevent = \"none\"\niotype = \"write-zeroes\"\n"
     "once = \"on\"\n",
     {"write -z 0 64k", "write -z 0 64k", "read -P 0 0 64k"}},
    {"raw: discards fail once",
     "raw",
     "[inject-error]\nevent = \"none\"\niotype = \"discard\"\nonce = \"on\"\n",
     {"discard 0 64k", "discard 0 64k"}},
};

TEST(BlkdebugBesideQemu, GivesTheSameAnswersAndTheSameData) {
  const std::string config = temporary_path("config");
  for (const Case& one : kCases) {
    SCOPED_TRACE(one.name);
    std::ofstream(config) << one.config;
    const testing::ImageFile ours{temporary_path("ours"), one.format};
    const testing::ImageFile theirs{temporary_path("theirs"), one.format};
    for (const testing::ImageFile& image : {ours, theirs}) {
      ASSERT_TRUE(
          testing::qemu_create({image, 1 << 20, "", std::nullopt}).ok());
      ASSERT_TRUE(testing::qemu_io(image, {"write -P 7 0 128k"}).ok());
    }
    EXPECT_EQ(
        answers(our_program(), one.format, config, ours.path, one.commands),
        answers("qemu-io", one.format, config, theirs.path, one.commands));
    EXPECT_TRUE(testing::qemu_compare(ours, theirs).ok());
    if (one.format == std::string("qcow2")) {
      EXPECT_TRUE(testing::qemu_check(ours).ok());
    }
    ::unlink(ours.path.c_str());
    ::unlink(theirs.path.c_str());
  }
  ::unlink(config.c_str());
}

}  // namespace
}  // namespace spindle

// spindle-img map as a program, beside qemu-img.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using ::spindle::testing::ImageFile;
using ::spindle::testing::run_tool_apart;
using ::spindle::testing::temporary_path;
using Arguments = std::vector<std::string>;

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
}

void expect_same(const Arguments& arguments) {
  SCOPED_TRACE(absl::StrJoin(arguments, " "));
  Arguments all = {"qemu-img", "map"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  const auto theirs = run_tool_apart(all);
  all[0] = our_program();
  const auto ours = run_tool_apart(all);
  ASSERT_TRUE(ours.ok() && theirs.ok());
  EXPECT_EQ(ours->output, theirs->output);
  EXPECT_EQ(absl::StrReplaceAll(ours->errors, {{"spindle-img", "qemu-img"}}),
            theirs->errors);
  EXPECT_EQ(ours->exit_code, theirs->exit_code);
}

void expect_same_map(const ImageFile& image, const Arguments& more = {}) {
  for (const char* output : {"--output=json", "--output=human"}) {
    Arguments arguments = {output, "-f", image.format};
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.push_back(image.path);
    expect_same(arguments);
  }
}

// Images of which each is the backing file of the next; removed at the end.
class Chain {
 public:
  ~Chain() {
    for (const ImageFile& image : images_) ::unlink(image.path.c_str());
  }
  const ImageFile& top() const { return images_.back(); }
  void add(const std::string& format, uint64_t size_bytes,
           const std::string& options, const Arguments& commands) {
    testing::QemuCreate create;
    create.image = {temporary_path("image"), format};
    create.size_bytes = size_bytes;
    create.options = options;
    if (!images_.empty()) create.backing = top();
    ASSERT_EQ(qemu_create(create), absl::OkStatus());
    images_.push_back(create.image);
    ASSERT_EQ(qemu_io(create.image, commands), absl::OkStatus());
  }

 private:
  std::vector<ImageFile> images_;
};

Arguments random_commands(std::mt19937_64& random, bool may_compress,
                          uint64_t size_bytes, uint64_t cluster_bytes) {
  Arguments commands;
  const uint64_t clusters = size_bytes / cluster_bytes;
  for (uint64_t count = random() % 14; count > 0; --count) {
    uint64_t offset = random() % clusters * cluster_bytes;
    uint64_t length = (1 + random() % 3) * cluster_bytes;
    const uint64_t kind = random() % 6;
    if (kind == 0 && may_compress) {
      // QEMU does not overwrite with compressed data.
      if (commands.empty()) {
        commands.push_back(
            absl::StrCat("write -c -P 5 ", offset, " ", cluster_bytes));
      }
      continue;
    }
    if (random() % 2 == 0) offset += random() % cluster_bytes / 512 * 512;
    length = std::min(length, size_bytes - offset);
    static constexpr const char* kVerbs[] = {
        "write -P 7", "write -P 8", "write -z", "write -z -u", "discard"};
    commands.push_back(
        absl::StrCat(kVerbs[random() % 5], " ", offset, " ", length));
  }
  return commands;
}

TEST(Map, EqualsQemusForChainsOfThree) {
  std::mt19937_64 random(testing::test_seed());
  const int rounds = std::getenv("SPINDLE_LONG") != nullptr ? 200 : 15;
  for (int round = 0; round < rounds; ++round) {
    Chain chain;
    for (int level = 0; level < 3; ++level) {
      const bool raw = level == 0 && random() % 2 == 0;
      const uint64_t cluster_bytes = uint64_t{512} << random() % 9;
      uint64_t size_bytes = (8 + random() % 60) * cluster_bytes;
      if (random() % 2 == 0) size_bytes += random() % 127 * 512;
      std::string options;
      if (!raw) {
        options = absl::StrCat("cluster_size=", cluster_bytes,
                               ",compat=", random() % 4 == 0 ? "0.10" : "1.1");
        static constexpr const char* kKinds[] = {"off", "metadata", "falloc",
                                                 "full"};
        if (level == 0) {
          absl::StrAppend(&options, ",preallocation=", kKinds[random() % 4]);
        }
      }
      const std::string format = raw ? "raw" : "qcow2";
      chain.add(format, size_bytes, options,
                random_commands(random, /*may_compress=*/level > 0, size_bytes,
                                cluster_bytes));
      if (HasFatalFailure()) return;
      SCOPED_TRACE(
          absl::StrCat("round ", round, ", level ", level, ", ", options));
      expect_same_map(chain.top());
      const std::string from = absl::StrCat(random() % size_bytes);
      const std::string count = absl::StrCat(random() % size_bytes);
      expect_same_map(chain.top(), {"-s", from, "-l", count});
      if (HasFailure()) return;
    }
  }
}

TEST(Map, RunsGoOnAcrossSlicesAndTables) {
  Chain chain;
  // An L2 table covers 32 KiB.
  chain.add("qcow2", 8 << 20, "cluster_size=512", {"write -P 3 0 8M"});
  expect_same_map(chain.top());
  chain.add("qcow2", 8 << 20, "cluster_size=512", {"write -z 100k 5M"});
  expect_same_map(chain.top());
}

TEST(Map, EqualsQemusForRawOfAnyLength) {
  for (const char* size : {"0", "1", "511", "4097", "1000001"}) {
    const ImageFile image{temporary_path("raw"), "raw"};
    ASSERT_TRUE(testing::write_file(image.path, {}).ok());
    ASSERT_EQ(::truncate(image.path.c_str(), std::atoll(size)), 0);
    expect_same_map(image);
    // What is behind its end is the overlay's.
    const ImageFile overlay{temporary_path("overlay"), "qcow2"};
    testing::QemuCreate create;
    create.image = overlay;
    create.backing = image;
    create.size_bytes = 2 << 20;
    ASSERT_EQ(qemu_create(create), absl::OkStatus());
    expect_same_map(overlay);
    ::unlink(image.path.c_str());
    ::unlink(overlay.path.c_str());
  }
}

TEST(Map, ArgumentsMeanWhatTheyMeanToQemu) {
  Chain chain;
  chain.add("qcow2", 4 << 20, "", {"write 0 64k", "write -z 64k 64k"});
  const std::string path = chain.top().path;
  for (const Arguments& arguments :
       {Arguments{path}, Arguments{"-U", path}, Arguments{"-s", "100", path},
        Arguments{"--start-offset=64k", "--max-length=100k", path},
        Arguments{"-s", "4M", path}, Arguments{"-s", "5M", path},
        Arguments{"--output=json", "-s", "5M", path},
        Arguments{"--output=json", "-l", "0", path}, Arguments{"-s", "x", path},
        Arguments{"-l", "x", path}, Arguments{"-s", "9E", path},
        Arguments{"--output=foo", path}, Arguments{}, Arguments{path, path}}) {
    expect_same(arguments);
  }
  const auto missing = run_tool_apart({our_program(), "map", "no-such-file"});
  ASSERT_TRUE(missing.ok());
  EXPECT_EQ(missing->exit_code, 1);
}

}  // namespace
}  // namespace spindle

// spindle-img amend, beside qemu-img amend.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using ::spindle::testing::ImageFile;
using ::spindle::testing::read_file;
using ::spindle::testing::run_tool;
using ::spindle::testing::run_tool_ok;
using ::spindle::testing::tmpfs_path;
using ::spindle::testing::ToolResult;

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
}

// Two copies of one image, for us and for QEMU.
class AmendTool : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = tmpfs_path("amend");
    shell(absl::StrCat("mkdir -p ", folder_, "/ours ", folder_, "/theirs"));
    shell(absl::StrCat("qemu-img create -q -f raw ", folder_, "/base 4M"));
    shell(absl::StrCat("qemu-io -f raw -c 'write -P 187 0 4M' ", folder_,
                       "/base"));
  }
  void TearDown() override { shell(absl::StrCat("rm -r ", folder_)); }

  void shell(const std::string& command) const {
    const auto result = run_tool_ok({"sh", "-c", command});
    EXPECT_TRUE(result.ok()) << result.status();
  }
  // Makes image "x" by these commands, in both places.
  void make(const std::vector<std::string>& commands) const {
    for (const std::string& command : commands)
      shell(absl::StrCat("cd ", folder_, "/theirs && ", command));
    shell(absl::StrCat("cp ", folder_, "/theirs/* ", folder_, "/ours/"));
  }
  ToolResult in(const char* place, const std::string& program,
                const std::string& arguments) const {
    const auto result =
        run_tool({"sh", "-c",
                  absl::StrCat("cd ", folder_, "/", place, " && ", program, " ",
                               arguments)});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : ToolResult();
  }
  ImageFile image(const char* place) const {
    return {absl::StrCat(folder_, "/", place, "/x"), "qcow2"};
  }
  std::vector<uint8_t> bytes(const char* place) const {
    return *read_file(image(place).path);
  }
  static std::vector<uint8_t> first(std::vector<uint8_t> bytes, size_t count) {
    bytes.resize(std::min(bytes.size(), count));
    return bytes;
  }

  // Both do it, and say the same; a success makes the same header, an error
  // leaves ours as it was.
  bool amend(const std::string& arguments, size_t header_bytes = 4096) {
    SCOPED_TRACE(arguments);
    const auto before = bytes("ours");
    const ToolResult mine =
        in("ours", our_program(), absl::StrCat("amend ", arguments));
    const ToolResult theirs =
        in("theirs", "qemu-img", absl::StrCat("amend ", arguments));
    EXPECT_EQ(mine.exit_code, theirs.exit_code) << mine.output;
    EXPECT_EQ(absl::StrReplaceAll(mine.output, {{"spindle-img:", "qemu-img:"}}),
              theirs.output);
    if (mine.exit_code != 0) {
      EXPECT_TRUE(bytes("ours") == before);
      return false;
    }
    EXPECT_TRUE(first(bytes("ours"), header_bytes) ==
                first(bytes("theirs"), header_bytes));
    const ToolResult clean = in("ours", "qemu-img", "check x");
    EXPECT_EQ(clean.exit_code, 0) << clean.output;
    const ToolResult same = in("ours", "qemu-img", "compare x ../theirs/x");
    EXPECT_EQ(same.exit_code, 0) << same.output;
    return true;
  }

 private:
  std::string folder_;
};

const char kSize[] = " x 4M";

TEST_F(AmendTool, SaysWhatQemuSays) {
  make({absl::StrCat("qemu-img create -q -f qcow2", kSize),
        "qemu-io -c 'write 0 1M' -c 'write -z 64k 128k' x"});
  for (const char* arguments : {
           "-o compat=bogus x",
           "-o refcount_bits=3 x",
           "-o refcount_bits=128 x",
           "-o refcount_bits=0 x",
           "-o refcount_bits=x x",
           "-o backing_file=base x",
           "-o backing_file=base,backing_fmt=raw x",
           "-o cluster_size=4k x",
           "-o compression_type=zstd x",
           "-o extended_l2=on x",
           "-o preallocation=full x",
           "-o size=x x",
           "-o size=1 x",
           "-o data_file=q x",
           "-o data_file_raw=on x",
           "-o encryption=on x",
           "-o encrypt.format=luks x",
           "-o bogus=1 x",
           "-o lazy_refcounts=on",
           "-o lazy_refcounts=on nofile",
           "-o '' x",
           "-t xx -o lazy_refcounts=on x",
           "-f nope -o help",
           "-o help",
           "-f raw -o size=1M x",
           "-o compat=0.10,lazy_refcounts=on x",
           "-o compat=0.10,refcount_bits=8 x",
       }) {
    EXPECT_FALSE(amend(arguments));
  }
  // What is right, and what follows from it.
  for (const char* arguments : {
           "-o size=0 x",
           "-o data_file_raw=off x",
           "-o backing_file= x",
           "-q -p -o lazy_refcounts=on x",
           "-o lazy_refcounts=on -o lazy_refcounts=off x",
           "-f qcow2 -o compat=0.10 x",
           "-o compat=0.10 x",
           "-o lazy_refcounts=on x",
           "-o refcount_bits=8 x",
           "--force -o refcount_bits=8,compat=1.1 x",
           "-o compat=0.10 x",
           "-o compat=v2,refcount_bits=16 x",
           "-t none -o compat=v3 x",
       }) {
    amend(arguments);
  }
}

TEST_F(AmendTool, SnapshotsStandAgainstIt) {
  make({absl::StrCat("qemu-img create -q -f qcow2", kSize),
        "qemu-io -c 'write 0 1M' x", "qemu-img snapshot -c s x"});
  EXPECT_FALSE(amend("-o refcount_bits=1 x"));
  EXPECT_TRUE(amend("-o refcount_bits=2 x"));
  EXPECT_TRUE(amend("-o compat=0.10,refcount_bits=16 x"));
  make({"qemu-img amend -o compat=1.1 x", "qemu-img resize -q x 6M"});
  EXPECT_FALSE(amend("-o compat=0.10 x"));
}

TEST_F(AmendTool, FeaturesStandAgainstADowngrade) {
  make({absl::StrCat("qemu-img create -q -f qcow2 -o data_file=d", kSize)});
  EXPECT_FALSE(amend("-o compat=0.10 x"));
  EXPECT_FALSE(amend("-o data_file_raw=on x"));
  make({absl::StrCat("qemu-img create -q -f qcow2 -o compression_type=zstd",
                     kSize)});
  EXPECT_TRUE(amend("-o compat=0.10 x"));
  make({absl::StrCat("qemu-img create -q -f qcow2 -o compression_type=zstd",
                     kSize),
        "qemu-io -c 'write -c 0 64k' x"});
  EXPECT_FALSE(amend("-o compat=0.10 x"));
}

TEST_F(AmendTool, DataFiles) {
  make({absl::StrCat(
      "qemu-img create -q -f qcow2 -o data_file=d,data_file_raw=on", kSize)});
  EXPECT_TRUE(amend("-o refcount_bits=8 x"));
  EXPECT_TRUE(amend("-o data_file_raw=off x"));
  make({"cp d d2"});
  EXPECT_TRUE(amend("-o data_file=d2 x"));
}

struct Variant {
  const char* create;
  uint64_t cluster_bytes;
  bool snapshots = false;
};

class AmendHistories : public AmendTool,
                       public ::testing::WithParamInterface<Variant> {};

// Random data, zeroes, discards and snapshots between random amendments.
TEST_P(AmendHistories, AreQemus) {
  std::mt19937_64 random(testing::test_seed());
  const auto any = [&random](const std::vector<std::string>& list) {
    return list[random() % list.size()];
  };
  const Variant& variant = GetParam();
  make(
      {absl::StrCat("qemu-img create -q -f qcow2 -o ", variant.create, kSize)});
  int snapshots = 0;
  for (int i = 0; i < 6 && !HasFailure(); ++i) {
    std::string edits = "qemu-io";
    for (int e = 0; e < 6; ++e) {
      const uint64_t at = random() % (uint64_t{4} << 20) / 512 * 512;
      const uint64_t whole = at / variant.cluster_bytes * variant.cluster_bytes;
      const uint64_t length = std::min<uint64_t>(
          3 * variant.cluster_bytes, (uint64_t{4} << 20) - std::max(at, whole));
      absl::StrAppend(&edits, " -c '",
                      any({absl::StrCat("write -P ", random() % 256, " ", at),
                           absl::StrCat("write -z ", whole),
                           absl::StrCat("write -z -u ", whole),
                           absl::StrCat("discard ", whole)}),
                      " ", std::max<uint64_t>(length / 512 * 512, 512), "'");
    }
    std::vector<std::string> commands = {absl::StrCat(edits, " x")};
    // Counts of two bits go up to three.
    if (variant.snapshots && snapshots < 2 && random() % 3 == 0)
      commands.push_back(
          absl::StrCat("qemu-img snapshot -c s", ++snapshots, " x"));
    // Made in one place and copied: the next amendment starts alike.
    make(commands);
    // QEMU's downgrade leaves COPIED where a snapshot has the cluster as well:
    // there is nothing to compare with after that.
    if (i > 0 && in("theirs", "qemu-img", "check x").exit_code != 0) return;
    const auto keep = [&](const char* place, const char* as) {
      for (int s = 1; s <= snapshots; ++s) {
        const ToolResult kept =
            in(place, "qemu-img",
               absl::StrCat("convert -O raw -l snapshot.name=s", s, " x ../",
                            as, s));
        EXPECT_EQ(kept.exit_code, 0) << kept.output;
      }
    };
    keep("ours", "before");
    std::vector<std::string> amendments = {"compat=0.10", "compat=1.1",
                                           "lazy_refcounts=off,compat=1.1",
                                           "refcount_bits=16"};
    // QEMU takes minutes for another width where a refcount block counts a
    // million clusters.
    if (variant.cluster_bytes <= 65536) {
      amendments.insert(amendments.end(),
                        {"compat=0.10,refcount_bits=16",
                         // A snapshot needs a count of two.
                         variant.snapshots ? "compat=1.1,refcount_bits=2"
                                           : "compat=1.1,refcount_bits=1",
                         "compat=1.1,refcount_bits=64",
                         "compat=1.1,refcount_bits=8,lazy_refcounts=on",
                         "refcount_bits=32,compat=1.1"});
    }
    amend(absl::StrCat("-o ", any(amendments), " x"),
          std::min<size_t>(variant.cluster_bytes, 4096));
    // Where QEMU writes zeroes into a cluster whose data a snapshot still has
    // (which it then has no more), ours takes another.
    keep("ours", "after");
    for (int s = 1; s <= snapshots; ++s) {
      EXPECT_EQ(in("ours", "cmp", absl::StrCat("../before", s, " ../after", s))
                    .exit_code,
                0)
          << "snapshot " << s;
    }
    if (variant.snapshots) continue;
    // Clusters lie where QEMU puts them.
    const auto our_map = testing::qemu_map(image("ours"));
    const auto their_map = testing::qemu_map(image("theirs"));
    ASSERT_TRUE(our_map.ok() && their_map.ok());
    EXPECT_EQ(testing::placement(*our_map), testing::placement(*their_map));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Variants, AmendHistories,
    ::testing::Values(
        Variant{"cluster_size=64k", 65536},
        Variant{"cluster_size=64k", 65536, true},
        Variant{"cluster_size=4k,compat=0.10", 4096, true},
        Variant{"cluster_size=512,refcount_bits=1", 512},
        Variant{"cluster_size=4k,backing_file=../base,backing_fmt=raw", 4096},
        Variant{"cluster_size=64k,backing_file=../base,backing_fmt=raw", 65536,
                true},
        Variant{"cluster_size=2M,backing_file=../base,backing_fmt=raw",
                2 << 20}));

}  // namespace
}  // namespace spindle

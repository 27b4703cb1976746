// New images, compared byte for byte with those of qemu-img.
#include "formats/qcow2/create.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/header.h"
#include "tests/formats/qcow2/file_store.h"
#include "tests/support/file_difference.h"
#include "tests/support/memory_driver.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

using ::spindle::testing::FileStore;
using ::spindle::testing::run_tool;
using ::spindle::testing::run_tool_ok;
using ::spindle::testing::temporary_path;

struct Case {
  uint64_t size_bytes = 0;
  std::string options;  // as after -o
  std::string backing_filename;
  std::string backing_format;
};

std::string describe(const Case& c) {
  return absl::StrCat(c.options, " size=", c.size_bytes, " backing='",
                      c.backing_filename, "' (", c.backing_format, ")");
}

CreateOptions to_options(const Case& c) {
  CreateOptions options;
  options.size_bytes = c.size_bytes;
  options.backing_filename = c.backing_filename;
  options.backing_format = c.backing_format;
  options.unsafe_backing = true;
  for (absl::string_view pair :
       absl::StrSplit(c.options, ',', absl::SkipEmpty())) {
    const std::vector<std::string> parts =
        absl::StrSplit(pair, absl::MaxSplits('=', 1));
    options.options[parts[0]] = parts[1];
  }
  return options;
}

absl::Status create_ours(const Case& c, const std::string& path) {
  const absl::StatusOr<CreatePlan> plan = plan_create(to_options(c));
  if (!plan.ok()) return plan.status();
  return write_image(*plan, std::make_shared<FileStore>(path));
}

std::vector<std::string> qemu_command(const Case& c, const std::string& path) {
  std::vector<std::string> command = {"qemu-img", "create", "-q",
                                      "-u",       "-f",     "qcow2"};
  if (!c.options.empty()) command.insert(command.end(), {"-o", c.options});
  if (!c.backing_filename.empty())
    command.insert(command.end(), {"-b", c.backing_filename});
  if (!c.backing_format.empty())
    command.insert(command.end(), {"-F", c.backing_format});
  command.push_back(path);
  command.push_back(absl::StrCat(c.size_bytes));
  return command;
}

// Creates both images and expects them to be the same file.
void expect_same(const Case& c) {
  SCOPED_TRACE(describe(c));
  const std::string theirs = temporary_path("theirs");
  const std::string ours = temporary_path("ours");
  ASSERT_TRUE(run_tool_ok(qemu_command(c, theirs)).ok());
  const absl::Status status = create_ours(c, ours);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(testing::find_file_difference(theirs, ours), "");
  std::remove(theirs.c_str());
  std::remove(ours.c_str());
}

// Expects both to refuse, and ours to say why.
void expect_refused(const Case& c, absl::StatusCode code,
                    const std::string& message) {
  SCOPED_TRACE(describe(c));
  const std::string path = temporary_path("refused");
  const auto theirs = run_tool(qemu_command(c, path));
  ASSERT_TRUE(theirs.ok());
  EXPECT_NE(theirs->exit_code, 0) << "qemu-img accepts it";
  const absl::Status status = create_ours(c, path);
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_NE(status.message().find(message), std::string::npos) << status;
}

uint64_t max_size(uint64_t cluster_size) {
  return kMaxL1TableBytes / kL1EntryBytes * (cluster_size / kL2EntryBytes) *
         cluster_size;
}

// "compat=...,refcount_bits=..." for all legal pairs.
std::vector<std::string> versions_and_widths() {
  std::vector<std::string> all = {"compat=0.10,refcount_bits=16"};
  for (uint32_t order = 0; order <= kMaxRefcountOrder; ++order) {
    all.push_back(absl::StrCat("compat=1.1,refcount_bits=", 1u << order));
  }
  return all;
}

class CreateByClusterBits : public ::testing::TestWithParam<uint32_t> {
 protected:
  uint64_t cluster_size() const { return uint64_t{1} << GetParam(); }
  std::string with_cluster_size(const std::string& options) const {
    return absl::StrCat("cluster_size=", cluster_size(),
                        options.empty() ? "" : ",", options);
  }
};

TEST_P(CreateByClusterBits, EqualsQemuForEveryVersionAndWidth) {
  constexpr uint64_t kTebi = uint64_t{1} << 40;
  for (const std::string& options : versions_and_widths()) {
    for (uint64_t size : {uint64_t{0}, uint64_t{1}, uint64_t{512},
                          uint64_t{1} << 20, uint64_t{123456789}, kTebi}) {
      if (size > max_size(cluster_size())) continue;
      expect_same({size, with_cluster_size(options), "", ""});
      if (HasFatalFailure()) return;
    }
    expect_same({1 << 20, with_cluster_size(options), "base.img", "raw"});
    expect_same({12345, with_cluster_size(options),
                 "/a/longer/name, with: signs.qcow2", "qcow2"});
  }
}

TEST_P(CreateByClusterBits, EqualsQemuForLazyRefcounts) {
  expect_same({1 << 20, with_cluster_size("lazy_refcounts=on"), "", ""});
  expect_same({1 << 20, with_cluster_size("lazy_refcounts=on"), "b", "vmdk"});
  expect_same({0, with_cluster_size("lazy_refcounts=off,compression_type=zlib"),
               "", ""});
}

TEST_P(CreateByClusterBits, EqualsQemuForPreallocation) {
  for (const char* mode : {"metadata", "falloc", "full"}) {
    for (uint64_t size :
         {uint64_t{0}, uint64_t{1}, uint64_t{300000}, uint64_t{10} << 20}) {
      for (const char* options : {"compat=0.10", "refcount_bits=1",
                                  "refcount_bits=64", "lazy_refcounts=on"}) {
        expect_same({size,
                     with_cluster_size(
                         absl::StrCat("preallocation=", mode, ",", options)),
                     "", ""});
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(CreateByClusterBits, EqualsQemuAcrossManyL2Tables) {
  const uint64_t per_table = cluster_size() / kL2EntryBytes * cluster_size();
  // Large clusters reach what this is about below one table.
  const uint64_t size =
      std::min(per_table * 3 + cluster_size() + 512, uint64_t{7} << 30);
  expect_same({size, with_cluster_size("preallocation=metadata"), "", ""});
  expect_same({size,
               with_cluster_size("preallocation=metadata,refcount_bits=64"), "",
               ""});
  if (size <= uint64_t{16} << 20) {
    expect_same({size, with_cluster_size("preallocation=falloc"), "", ""});
    expect_same({size, with_cluster_size("preallocation=full,refcount_bits=64"),
                 "", ""});
  }
}

TEST_P(CreateByClusterBits, EqualsQemuAtTheLargestSize) {
  expect_same({max_size(cluster_size()), with_cluster_size(""), "", ""});
}

TEST_P(CreateByClusterBits, RefusesMoreThanTheLargestSize) {
  expect_refused({max_size(cluster_size()) + 1, with_cluster_size(""), "", ""},
                 absl::StatusCode::kInvalidArgument, "size is ");
}

TEST_P(CreateByClusterBits, RefusesABackingNameThatDoesNotFit) {
  // 1,023 bytes fit nowhere below clusters of 2 KiB.
  const Case longest = {1 << 20, with_cluster_size(""), std::string(1023, 'n'),
                        "raw"};
  if (cluster_size() >= 2048) {
    expect_same(longest);
  } else {
    expect_refused(longest, absl::StatusCode::kResourceExhausted,
                   "backing file name");
  }
}

INSTANTIATE_TEST_SUITE_P(ClusterBits, CreateByClusterBits,
                         ::testing::Range(kMinClusterBits,
                                          kMaxClusterBits + 1));

// Small clusters and wide refcounts: the refcount table itself must grow, more
// than once, and leaves its old contents behind.
TEST(Create, EqualsQemuWhereTheRefcountTableGrows) {
  for (uint64_t mebibytes : {2, 3, 8, 33}) {
    for (const char* width : {"16", "32", "64"}) {
      expect_same(
          {mebibytes << 20,
           absl::StrCat(
               "cluster_size=512,preallocation=metadata,refcount_bits=", width),
           "", ""});
      expect_same(
          {mebibytes << 20,
           absl::StrCat("cluster_size=1k,preallocation=falloc,refcount_bits=",
                        width),
           "", ""});
    }
  }
}

TEST(Create, AFailureLeavesAnEmptyFile) {
  for (const char* mode : {"off", "metadata", "falloc", "full"}) {
    for (uint64_t limit : {uint64_t{0}, uint64_t{65536}, uint64_t{140000}}) {
      SCOPED_TRACE(absl::StrCat(mode, " ", limit));
      auto file = std::make_shared<testing::MemoryDriver>(
          testing::MemoryDriver::Options{.max_length_bytes = limit});
      CreateOptions options;
      options.size_bytes = uint64_t{8} << 20;
      options.options["preallocation"] = mode;
      const auto plan = plan_create(options);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_EQ(errno_of(write_image(*plan, file)), ENOSPC);
      EXPECT_EQ(file->length_bytes(), 0u);
    }
  }
}

TEST(Create, RefusesWhatQemuRefuses) {
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  expect_refused({512, "cluster_size=1000", "", ""}, invalid,
                 "cluster_size is 1000");
  expect_refused({512, "cluster_size=256", "", ""}, invalid,
                 "cluster_size is 256");
  expect_refused({512, "cluster_size=4M", "", ""}, invalid,
                 "cluster_size is 4194304");
  expect_refused({512, "cluster_size=1x", "", ""}, invalid, "'cluster_size'");
  expect_refused({512, "refcount_bits=3", "", ""}, invalid,
                 "refcount_bits is 3");
  expect_refused({512, "refcount_bits=0", "", ""}, invalid,
                 "refcount_bits is 0");
  expect_refused({512, "refcount_bits=128", "", ""}, invalid,
                 "refcount_bits is 128");
  expect_refused({512, "compat=0.10,refcount_bits=8", "", ""}, invalid,
                 "compat=0.10");
  expect_refused({512, "compat=v2,lazy_refcounts=on", "", ""}, invalid,
                 "compat=1.1");
  expect_refused({512, "compat=0.11", "", ""}, invalid, "'compat'");
  expect_refused({512, "lazy_refcounts=maybe", "", ""}, invalid,
                 "'on' or 'off'");
  expect_refused({512, "preallocation=some", "", ""}, invalid,
                 "'preallocation'");
  expect_refused({512, "compression_type=lzma", "", ""}, invalid,
                 "'compression_type'");
  expect_refused({512, "no_such_option=1", "", ""}, invalid, "no_such_option");
  expect_refused({512, "", "base", ""}, invalid, "without backing format");
  expect_refused({512, "preallocation=metadata", "base", "raw"}, invalid,
                 "preallocation");
  expect_refused({512, "", std::string(1024, 'n'), "raw"}, invalid, "1024");
}

TEST(Create, RefusesEncryptionThatCannotBe) {
  const struct {
    const char* options;
    absl::StatusCode code;
    const char* message;
  } cases[] = {
      {"encryption=on", absl::StatusCode::kInvalidArgument, "key-secret"},
      {"encrypt.format=luks", absl::StatusCode::kInvalidArgument, "key-secret"},
      {"encrypt.key-secret=s", absl::StatusCode::kInvalidArgument,
       "encrypt.format"},
      {"encrypt.format=luks,encrypt.key-secret=s", absl::StatusCode::kNotFound,
       "'s'"},
      {"encrypt.format=rot13,encrypt.key-secret=s",
       absl::StatusCode::kInvalidArgument, "rot13"},
      {"encrypt.format=luks,encrypt.key-secret=s,"
       "encrypt.cipher-alg=twofish-192",
       absl::StatusCode::kUnimplemented, "192 bits"},
      {"encrypt.format=luks,encrypt.key-secret=s,encrypt.colour=red",
       absl::StatusCode::kNotFound, "'s'"},
  };
  for (const auto& c : cases) {
    const absl::Status status =
        plan_create(to_options({512, c.options, "", ""})).status();
    EXPECT_EQ(status.code(), c.code) << c.options << ": " << status;
    EXPECT_NE(status.message().find(c.message), std::string::npos) << status;
  }
}

TEST(Create, RefusesDataFilesThatMakeNoSense) {
  const struct {
    Case create;
    const char* message;
  } cases[] = {
      {{512, "data_file_raw=on", "", ""}, "data-file-raw requires data-file"},
      {{512, "data_file=x,compat=0.10", "", ""},
       "External data files are only supported with compatibility level 1.1"},
      {{512, "data_file=x,data_file_raw=on", "base", "raw"},
       "Backing file and data-file-raw cannot be used at the same time"},
      {{512, "data_file=", "", ""}, "1 to 4095"},
  };
  for (const auto& c : cases) {
    const absl::Status status = plan_create(to_options(c.create)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_NE(status.message().find(c.message), std::string::npos) << status;
  }
}

TEST(Create, CompressionTypeIsQemus) {
  for (const char* options :
       {"compression_type=zlib", "compression_type=zstd",
        "compression_type=zstd,cluster_size=512",
        "compression_type=zstd,cluster_size=2M,lazy_refcounts=on",
        "compression_type=zstd,preallocation=metadata"}) {
    expect_same({1 << 20, options, "", ""});
  }
}

TEST(Create, ExtendedL2IsQemus) {
  for (const char* options :
       {"extended_l2=on", "extended_l2=on,cluster_size=16k",
        "extended_l2=on,cluster_size=2M,refcount_bits=1,compression_type=zstd",
        "extended_l2=on,lazy_refcounts=on,cluster_size=32k"}) {
    for (uint64_t size : {uint64_t{0}, uint64_t{123456789}, uint64_t{1} << 33,
                          (uint64_t{1} << 33) + 512}) {
      expect_same({size, options, "", ""});
    }
    expect_same({1 << 20, options, "base", "qcow2"});
  }
}

TEST(Create, ExtendedL2IsPreallocatedAsQemuDoes) {
  for (const char* mode : {"metadata", "falloc", "full"}) {
    for (const char* options :
         {"extended_l2=on,cluster_size=16k,refcount_bits=64",
          "extended_l2=on,cluster_size=64k"}) {
      const std::string all = absl::StrCat(options, ",preallocation=", mode);
      // One table, several, and an end within a cluster.
      for (uint64_t size : {uint64_t{1} << 20, (uint64_t{40} << 20) + 512})
        expect_same({size, all, "", ""});
      // Nothing is allocated, so a backing file is allowed.
      expect_same({1 << 20, all, "base", "raw"});
    }
  }
  expect_same({uint64_t{300} << 20,
               "extended_l2=on,cluster_size=64k,preallocation=metadata", "",
               ""});
}

TEST(Create, ExtendedL2NeedsVersion3AndLargeClusters) {
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  expect_refused({512, "extended_l2=on,cluster_size=8k", "", ""}, invalid,
                 "at least 16384 bytes");
  expect_refused({512, "extended_l2=on,compat=0.10", "", ""}, invalid,
                 "compatibility level 1.1");
  expect_refused({512, "extended_l2=maybe", "", ""}, invalid, "'on' or 'off'");
  // The table covers half as much.
  expect_same({max_size(16384) / 2, "extended_l2=on,cluster_size=16k", "", ""});
  expect_refused(
      {max_size(16384) / 2 + 512, "extended_l2=on,cluster_size=16k", "", ""},
      invalid, "L1 table");
}

TEST(Create, RefusesACompressionTypeThatTheVersionHasNot) {
  for (const char* options :
       {"compression_type=zstd,compat=0.10", "compression_type=lz4"}) {
    const absl::Status status =
        plan_create(to_options({512, options, "", ""})).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
}

TEST(Create, AcceptsTheOffOfFeaturesThatAreMissing) {
  expect_same({1 << 20,
               "extended_l2=off,compression_type=zlib,data_file_raw=off", "",
               ""});
}

}  // namespace
}  // namespace spindle::qcow2

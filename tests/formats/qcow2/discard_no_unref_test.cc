// discard-no-unref: what is discarded, or made zero and may be unmapped, keeps
// its host cluster.  QEMU has the option since 8.1; its documentation says what
// the entries are, and the installed one says whether it likes the images.
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "engine/block_driver.h"
#include "formats/qcow2/qcow2_driver.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/data_image.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 65536;
constexpr uint64_t kSize = 16 * kCluster;
constexpr uint64_t kZeroFlag = 1;
constexpr uint64_t kAllZero = 0xffffffff00000000;

constexpr ByteRange cluster(uint64_t index, uint64_t count = 1) {
  return {index * kCluster, count * kCluster};
}

MemoryImageOptions image_of(const std::string& options,
                            const std::vector<std::string>& commands) {
  MemoryImageOptions image;
  image.size_bytes = kSize;
  image.bytes = qemu_image_bytes(kSize, options, commands);
  image.open["discard-no-unref"] = "on";
  return image;
}

struct Entry {
  uint64_t descriptor = 0;
  uint64_t bitmap = 0;
  bool operator==(const Entry&) const = default;
};

// As they stand in the file.
std::vector<Entry> entries_of(MemoryImage* image, bool extended) {
  const std::string bytes = image->memory().content();
  const uint64_t l1 = get_big64(bytes, 40);
  const uint64_t l2 = get_big64(bytes, l1) & 0x00fffffffffffe00;
  std::vector<Entry> entries;
  for (uint64_t i = 0; i < kSize / kCluster; ++i) {
    const uint64_t at = l2 + i * (extended ? 16 : 8);
    entries.push_back(
        {get_big64(bytes, at), extended ? get_big64(bytes, at + 8) : 0});
  }
  return entries;
}

uint64_t host_of(const Entry& entry) {
  return entry.descriptor & 0x00fffffffffffe00;
}

// What QEMU reads there.
std::string content_by_qemu(const std::string& bytes) {
  const ImageFile image{temporary_path("image"), "qcow2"};
  const ImageFile raw{temporary_path("raw"), "raw"};
  EXPECT_EQ(
      write_file(image.path, {reinterpret_cast<const uint8_t*>(bytes.data()),
                              bytes.size()}),
      absl::OkStatus());
  EXPECT_EQ(qemu_convert(image, raw, ""), absl::OkStatus());
  const auto content = read_file(raw.path);
  EXPECT_TRUE(content.ok()) << content.status();
  ::unlink(image.path.c_str());
  ::unlink(raw.path.c_str());
  return std::string(content->begin(), content->end());
}

std::string filled(std::initializer_list<std::pair<ByteRange, char>> parts) {
  std::string content(kSize, '\0');
  for (const auto& [range, value] : parts)
    content.replace(range.offset, range.length, range.length, value);
  return content;
}

// ---- Entries, space, content
// -------------------------------------------------

class DiscardNoUnref : public ::testing::TestWithParam<bool> {
 protected:
  bool extended() const { return GetParam(); }
  std::string options() const { return extended() ? "extended_l2=on" : ""; }
  Entry kept(const Entry& old) const {
    return extended() ? Entry{old.descriptor, kAllZero}
                      : Entry{old.descriptor | kZeroFlag, 0};
  }
  Entry plain_zero() const {
    return extended() ? Entry{0, kAllZero} : Entry{kZeroFlag, 0};
  }
};
INSTANTIATE_TEST_SUITE_P(Entries, DiscardNoUnref, ::testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "Extended" : "Standard";
                         });

TEST_P(DiscardNoUnref, KeepsTheHostClusterAndPunchesIt) {
  MemoryImage image(image_of(options(), {"write -P 1 0 512k"}));
  const std::vector<Entry> before = entries_of(&image, extended());
  ASSERT_EQ(image.discard(cluster(1, 2)), absl::OkStatus());
  ASSERT_EQ(image.driver().write_zeroes(cluster(4), {.may_unmap = true}),
            absl::OkStatus());
  // Without leave to unmap nothing is punched.
  ASSERT_EQ(image.driver().write_zeroes(cluster(6), {}), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  const std::vector<Entry> after = entries_of(&image, extended());
  for (size_t i = 0; i < before.size(); ++i) {
    SCOPED_TRACE(i);
    const bool discarded = i == 1 || i == 2 || i == 4;
    EXPECT_EQ(after[i], discarded || i == 6 ? kept(before[i]) : before[i]);
    if (i >= 8) continue;
    EXPECT_TRUE(image.memory().content({host_of(before[i]), kCluster}) ==
                std::string(kCluster, discarded ? '\0' : '\1'));
  }
  // The next write goes where the cluster was.
  ASSERT_EQ(image.write({kCluster + 512, 512}, 7), absl::OkStatus());
  EXPECT_EQ(image.host_of(kCluster + 512), host_of(before[1]) + 512);
  EXPECT_TRUE(image.reads_as({kCluster, 512}, 0));
  EXPECT_TRUE(image.reads_as({kCluster + 1024, kCluster - 1024}, 0));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_TRUE(content_by_qemu(image.memory().content()) ==
              filled({{cluster(0, 8), 1},
                      {cluster(1, 2), 0},
                      {cluster(4), 0},
                      {cluster(6), 0},
                      {{kCluster + 512, 512}, 7}}));
}

TEST_P(DiscardNoUnref, CompressedAndUnallocatedClustersKeepNothing) {
  MemoryImage image(image_of(
      options(),
      {"write -c -P 1 0 64k", "write -P 2 64k 64k", "write -z -u 128k 64k"}));
  const std::vector<Entry> before = entries_of(&image, extended());
  ASSERT_EQ(image.discard(cluster(0, 4)), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  const std::vector<Entry> after = entries_of(&image, extended());
  EXPECT_EQ(after[0], plain_zero());
  EXPECT_EQ(after[1], kept(before[1]));
  EXPECT_EQ(after[2], before[2]);
  EXPECT_EQ(after[3], before[3]);
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_TRUE(content_by_qemu(image.memory().content()) == filled({}));
}

TEST_P(DiscardNoUnref, WhatASnapshotSharesIsNotPunched) {
  MemoryImage image(image_of(options(), {"write -P 1 0 256k"}));
  const std::vector<Entry> before = entries_of(&image, extended());
  SnapshotInfo wanted;
  wanted.name = "s";
  // Once with the hole still to come, once afterwards.
  ASSERT_EQ(image.write(cluster(0), 2), absl::OkStatus());
  ASSERT_EQ(image.driver().create_snapshot(wanted).status(), absl::OkStatus());
  ASSERT_EQ(image.discard(cluster(0, 2)), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  EXPECT_TRUE(image.memory().content({host_of(before[0]), kCluster}) ==
              std::string(kCluster, '\2'));
  // Nor is it written to.
  ASSERT_EQ(image.write({0, 512}, 3), absl::OkStatus());
  EXPECT_NE(image.host_of(0), host_of(before[0]));
  ASSERT_EQ(image.driver().apply_snapshot("s"), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(0), 2));
  EXPECT_TRUE(image.reads_as(cluster(1, 3), 1));
  // Its only user again.
  ASSERT_EQ(image.driver().delete_snapshot("s"), absl::OkStatus());
  ASSERT_EQ(image.discard(cluster(1)), absl::OkStatus());
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_TRUE(image.memory().content({host_of(before[1]), kCluster}) ==
              std::string(kCluster, '\0'));
  EXPECT_TRUE(content_by_qemu(image.memory().content()) ==
              filled({{cluster(0), 2}, {cluster(2, 2), 1}}));
}

TEST_P(DiscardNoUnref, HidesTheBackingFile) {
  MemoryImageOptions options;
  options.size_bytes = kSize;
  options.backing = std::string(kSize, 'b');
  if (extended()) options.create["extended_l2"] = "on";
  options.open["discard-no-unref"] = "on";
  MemoryImage image(options);
  ASSERT_EQ(image.write({kCluster + 4096, 4096}, 1), absl::OkStatus());
  const auto host = image.host_of(kCluster + 4096);
  ASSERT_EQ(image.discard(cluster(0, 2)), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(0, 2), 0));
  EXPECT_TRUE(image.reads_as(cluster(2), 'b'));
  ASSERT_EQ(image.write({kCluster + 4096, 512}, 2), absl::OkStatus());
  EXPECT_EQ(image.host_of(kCluster + 4096), host);
  EXPECT_TRUE(image.reads_as({kCluster + 4608, kCluster - 4608}, 0));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// However often: the file does not grow, and clusters stay in their order.
TEST_P(DiscardNoUnref, FillingAndDiscardingMovesNothing) {
  MemoryImage image(image_of(options(), {"write -P 1 0 1M"}));
  const std::vector<Entry> before = entries_of(&image, extended());
  const uint64_t length = image.memory().length_bytes();
  for (uint8_t round = 2; round < 20; ++round) {
    ASSERT_EQ(image.discard({0, kSize}), absl::OkStatus());
    for (const uint64_t index : {9, 3, 15, 0, 7})
      ASSERT_EQ(image.write(cluster(index), round), absl::OkStatus());
    ASSERT_EQ(image.write({0, kSize}, round), absl::OkStatus());
  }
  ASSERT_EQ(image.flush(), absl::OkStatus());
  EXPECT_EQ(entries_of(&image, extended()), before);
  EXPECT_EQ(image.memory().length_bytes(), length);
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(DiscardNoUnrefOptions, PassDiscardIsObeyed) {
  const std::string bytes = qemu_image_bytes(kSize, "", {"write -P 1 0 64k"});
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, bytes);
  OpenOptions options;
  options.driver_options["discard-no-unref"] = "on";
  options.pass_discard_through = false;
  auto driver = qcow2::open_qcow2(memory, options, {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  ASSERT_EQ((*driver)->discard(cluster(0)), absl::OkStatus());
  EXPECT_TRUE(reads_as(**driver, cluster(0), 0));
  ASSERT_EQ((*driver)->close(), absl::OkStatus());
  EXPECT_TRUE(
      absl::StrContains(memory->content(), std::string(kCluster, '\1')));
  EXPECT_EQ(check_image_bytes(memory->content(), Leaks::kForbidden),
            absl::OkStatus());
}

TEST(DiscardNoUnrefOptions, VersionTwoIsRefused) {
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, qemu_image_bytes(kSize, "compat=0.10"));
  OpenOptions options;
  options.driver_options["discard-no-unref"] = "on";
  const absl::Status refused = qcow2::open_qcow2(memory, options, {}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "discard-no-unref=on"));
  EXPECT_TRUE(absl::StrContains(refused.message(), "version 2"));
  options.driver_options["discard-no-unref"] = "off";
  EXPECT_TRUE(qcow2::open_qcow2(memory, options, {}).ok());
}

TEST(DiscardNoUnrefOptions, NoDowngradeWhileItIsOn) {
  MemoryImage image(image_of("", {"write -P 1 0 64k"}));
  AmendOptions options;
  options.changes["compat"] = "0.10";
  const absl::Status refused = image.driver().amend(options);
  EXPECT_TRUE(absl::StrContains(refused.message(), "discard-no-unref"))
      << refused;
  EXPECT_TRUE(image.reads_as(cluster(0), 1));
  EXPECT_EQ(image.write(cluster(1), 2), absl::OkStatus());
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(DiscardNoUnrefDataFile, KeepsTheEntryAndDiscardsThere) {
  for (const char* raw : {"off", "on"}) {
    SCOPED_TRACE(raw);
    DataImage image(kSize, {{"data_file_raw", raw}});
    ASSERT_EQ(image.close(), absl::OkStatus());
    ASSERT_EQ(image.open(false, {{"discard-no-unref", "on"}}),
              absl::OkStatus());
    ASSERT_EQ(write_fill(image.driver(), cluster(0, 4), 1), absl::OkStatus());
    ASSERT_EQ(image.driver().flush(), absl::OkStatus());
    ASSERT_EQ(image.driver().discard(cluster(0, 2)), absl::OkStatus());
    EXPECT_TRUE(reads_as(image.driver(), cluster(0, 2), 0));
    EXPECT_TRUE(image.data_memory().content(cluster(0, 2)) ==
                std::string(2 * kCluster, '\0'));
    ASSERT_EQ(image.driver().flush(), absl::OkStatus());
    const std::string bytes = image.file_memory().content();
    const uint64_t l1 = get_big64(bytes, 40);
    const uint64_t l2 = get_big64(bytes, l1) & 0x00fffffffffffe00;
    EXPECT_EQ(get_big64(bytes, l2 + 8),
              (uint64_t{1} << 63) | kCluster | kZeroFlag);
    ASSERT_EQ(write_fill(image.driver(), {512, 512}, 3), absl::OkStatus());
    EXPECT_TRUE(reads_as(image.driver(), {512, 512}, 3));
    EXPECT_TRUE(reads_as(image.driver(), {1024, 2 * kCluster - 1024}, 0));
    EXPECT_TRUE(reads_as(image.driver(), cluster(2, 2), 1));
    EXPECT_EQ(image.close(), absl::OkStatus());
    EXPECT_EQ(image.check(), absl::OkStatus());
  }
}

// ---- Order, and requests that meet
// --------------------------------------------

std::future<absl::Status> in_background(std::function<absl::Status()> call) {
  return std::async(std::launch::async, std::move(call));
}

// The hole comes once the entry that says "zeroes" is durable.
TEST_P(DiscardNoUnref, TheEntryIsDurableBeforeTheHole) {
  MemoryImage image(image_of(options(), {"write -P 1 0 512k"}));
  absl::Mutex mutex;
  std::vector<Purpose> purposes;
  image.file().set_hook([&](const Access& access) {
    absl::MutexLock lock(&mutex);
    purposes.push_back(access.purpose);
    return absl::OkStatus();
  });
  ASSERT_EQ(image.discard(cluster(1, 2)), absl::OkStatus());
  {
    absl::MutexLock lock(&mutex);
    for (const Purpose purpose : purposes)
      EXPECT_NE(purpose, Purpose::kClusterFree);
    purposes.clear();
  }
  ASSERT_EQ(image.flush(), absl::OkStatus());
  image.file().set_hook(nullptr);
  // Two clusters in one piece.
  EXPECT_EQ(purposes,
            (std::vector<Purpose>{Purpose::kL2Update, Purpose::kFlushToDisk,
                                  Purpose::kClusterFree}));
}

// A discard that came after the round's snapshot waits for the next round.
TEST_P(DiscardNoUnref, ADiscardDuringARoundIsPunchedByTheNext) {
  MemoryImage image(image_of(options(), {"write -P 1 0 512k"}));
  const std::vector<Entry> before = entries_of(&image, extended());
  ASSERT_EQ(image.discard(cluster(1)), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kL2Update});
  auto flush = in_background([&] { return image.flush(); });
  stop->wait_until_reached();
  // The first one's number is durable soon; written and discarded again, it
  // counts anew.
  EXPECT_EQ(image.write(cluster(1), 2), absl::OkStatus());
  EXPECT_EQ(image.discard(cluster(1)), absl::OkStatus());
  EXPECT_EQ(image.discard(cluster(2)), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(flush.get(), absl::OkStatus());
  EXPECT_TRUE(image.memory().content({host_of(before[2]), kCluster}) ==
              std::string(kCluster, '\1'));
  EXPECT_TRUE(image.memory().content({host_of(before[1]), kCluster}) ==
              std::string(kCluster, '\2'));
  EXPECT_EQ(image.flush(), absl::OkStatus());
  EXPECT_TRUE(image.memory().content({host_of(before[1]), 2 * kCluster}) ==
              std::string(2 * kCluster, '\0'));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// A write comes while its host cluster is being punched.
TEST_P(DiscardNoUnref, ThePunchDoesNotHitTheNextWrite) {
  MemoryImage image(image_of(options(), {"write -P 1 0 512k"}));
  const std::vector<Entry> before = entries_of(&image, extended());
  ASSERT_EQ(image.discard(cluster(1)), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterFree});
  auto flush = in_background([&] { return image.flush(); });
  stop->wait_until_reached();
  auto write = in_background([&] { return image.write(cluster(1), 2); });
  // It could get there, if it did not wait.
  EXPECT_EQ(write.wait_for(std::chrono::milliseconds(100)),
            std::future_status::timeout);
  // Reads and writes elsewhere do not.
  EXPECT_TRUE(image.reads_as(cluster(1), 0));
  EXPECT_EQ(image.write(cluster(3), 3), absl::OkStatus());
  EXPECT_EQ(image.write(cluster(12), 3), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(flush.get(), absl::OkStatus());
  EXPECT_EQ(write.get(), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(1), 2));
  EXPECT_EQ(image.host_of(kCluster), host_of(before[1]));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// A write has come back to the cluster when its hole is due.
TEST_P(DiscardNoUnref, WhatIsWrittenAgainIsNotPunched) {
  MemoryImage image(image_of(options(), {"write -P 1 0 512k"}));
  ASSERT_EQ(image.discard(cluster(1)), absl::OkStatus());
  // Stopped on its way to the same host cluster, when the round ends.
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto write = in_background([&] { return image.write(cluster(1), 2); });
  stop->wait_until_reached();
  EXPECT_EQ(image.flush(), absl::OkStatus());
  EXPECT_EQ(image.file().count(Purpose::kClusterFree), 0u);
  stop->resume();
  EXPECT_EQ(write.get(), absl::OkStatus());
  EXPECT_EQ(image.flush(), absl::OkStatus());
  EXPECT_EQ(image.file().count(Purpose::kClusterFree), 0u);
  EXPECT_TRUE(image.reads_as(cluster(1), 2));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// A request from before the discard is under way in the cluster.
TEST_P(DiscardNoUnref, ARequestUnderWayHoldsTheHoleBack) {
  for (const Purpose purpose : {Purpose::kWriteAio, Purpose::kReadAio}) {
    SCOPED_TRACE(purpose_name(purpose));
    MemoryImage image(image_of(options(), {"write -P 1 0 512k"}));
    const std::vector<Entry> before = entries_of(&image, extended());
    const auto stop = image.file().stop_at({.purpose = purpose});
    auto request = in_background([&]() -> absl::Status {
      if (purpose == Purpose::kWriteAio) return image.write(cluster(1), 2);
      return read_bytes(image.driver(), cluster(1)).status();
    });
    stop->wait_until_reached();
    EXPECT_EQ(image.discard(cluster(1)), absl::OkStatus());
    EXPECT_EQ(image.flush(), absl::OkStatus());
    EXPECT_EQ(image.file().count(Purpose::kClusterFree), 0u);
    EXPECT_TRUE(image.reads_as(cluster(1), 0));
    // A new write does not wait for it, and is not overtaken by it.
    EXPECT_EQ(image.write({kCluster, 512}, 3), absl::OkStatus());
    stop->resume();
    EXPECT_EQ(request.get(), absl::OkStatus());
    EXPECT_TRUE(image.reads_as({kCluster + 512, kCluster - 512}, 0) ||
                extended());
    EXPECT_EQ(image.flush(), absl::OkStatus());
    EXPECT_TRUE(image.reads_as(cluster(0), 1));
    EXPECT_TRUE(image.reads_as(cluster(2, 6), 1));
    EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  }
}

// With nothing in the way but that request, the hole comes with the next round.
TEST_P(DiscardNoUnref, TheHoleComesWhenTheRequestHasGone) {
  MemoryImage image(image_of(options(), {"write -P 1 0 512k"}));
  const std::vector<Entry> before = entries_of(&image, extended());
  const auto stop = image.file().stop_at({.purpose = Purpose::kWriteAio});
  auto write = in_background([&] { return image.write(cluster(1), 2); });
  stop->wait_until_reached();
  EXPECT_EQ(image.discard(cluster(1)), absl::OkStatus());
  EXPECT_EQ(image.flush(), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(write.get(), absl::OkStatus());
  EXPECT_EQ(image.flush(), absl::OkStatus());
  EXPECT_TRUE(image.memory().content({host_of(before[1]), kCluster}) ==
              std::string(kCluster, '\0'));
  EXPECT_TRUE(image.reads_as(cluster(1), 0));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

}  // namespace
}  // namespace spindle::testing

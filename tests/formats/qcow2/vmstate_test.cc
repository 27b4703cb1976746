#include "formats/qcow2/vmstate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "engine/io_vector.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryImage;
using testing::MemoryImageOptions;

constexpr uint64_t kKib = 1024;

MemoryImageOptions small_image(std::string backing = "") {
  MemoryImageOptions options;
  options.size_bytes = 40 * kKib;  // an L1 entry covers 32 KiB
  options.create["cluster_size"] = "512";
  options.backing = std::move(backing);
  return options;
}

std::string pattern(uint64_t bytes, char first) {
  std::string text(bytes, first);
  for (uint64_t i = 0; i < bytes; i += 100)
    text[i] = static_cast<char>('a' + i / 100 % 26);
  return text;
}

absl::Status put(BlockDriver& driver, std::string text, uint64_t position) {
  return driver.write_vmstate(IoVector(text.data(), text.size()), position);
}

std::string get(BlockDriver& driver, uint64_t bytes, uint64_t position) {
  std::string text(bytes, '\xee');
  const absl::Status status =
      driver.read_vmstate(IoVector(text.data(), text.size()), position);
  return status.ok() ? text : status.ToString();
}

SnapshotInfo with_vmstate(const std::string& name, uint64_t bytes) {
  SnapshotInfo info;
  info.name = name;
  info.vm_state_bytes = bytes;
  return info;
}

TEST(VmState, IsBesideTheDiskAndByTheByte) {
  // The backing file is longer than the disk: it must not show here.
  MemoryImage image(small_image(std::string(4096 * kKib, 'b')));
  BlockDriver& driver = image.driver();
  ASSERT_TRUE(driver.capabilities().has(Capability::kVmState));
  EXPECT_EQ(get(driver, 1000, 0), std::string(1000, '\0'));
  const std::string state = pattern(300001, 's');
  ASSERT_TRUE(put(driver, state, 77).ok());
  EXPECT_TRUE(get(driver, state.size(), 77) == state);
  EXPECT_EQ(get(driver, 77, 0), std::string(77, '\0'));
  EXPECT_EQ(get(driver, 5000, 77 + state.size()), std::string(5000, '\0'));
  EXPECT_EQ(get(driver, 100, 1000 * 1000 * kKib), std::string(100, '\0'));
  EXPECT_TRUE(image.reads_as({0, 40 * kKib}, 'b'));
  EXPECT_EQ(driver.length_bytes(), 40 * kKib);
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(VmState, BelongsToTheSnapshotAfterwards) {
  MemoryImage image(small_image());
  BlockDriver& driver = image.driver();
  const std::string first = pattern(100000, '1');
  const std::string second = pattern(50000, '2');
  ASSERT_TRUE(put(driver, first, 0).ok());
  ASSERT_TRUE(driver.create_snapshot(with_vmstate("a", first.size())).ok());
  EXPECT_EQ(get(driver, 100000, 0), std::string(100000, '\0'));
  ASSERT_TRUE(put(driver, second, 0).ok());
  ASSERT_TRUE(driver.create_snapshot(with_vmstate("b", second.size())).ok());
  ASSERT_TRUE(driver.apply_snapshot("a").ok());
  EXPECT_TRUE(get(driver, first.size(), 0) == first);
  ASSERT_TRUE(driver.apply_snapshot("b").ok());
  EXPECT_TRUE(get(driver, second.size(), 0) == second);
  ASSERT_TRUE(driver.delete_snapshot("a").ok());
  EXPECT_TRUE(get(driver, second.size(), 0) == second);
  EXPECT_TRUE(image.close_and_check().ok());
}

// It lies where the other implementation looks for it.
TEST(VmState, QemuListsItAndBringsItBack) {
  MemoryImage image(small_image());
  const std::string state = pattern(200 * kKib, 's');
  ASSERT_TRUE(image.write({0, 40 * kKib}, 7).ok());
  ASSERT_TRUE(put(image.driver(), state, 0).ok());
  ASSERT_TRUE(
      image.driver().create_snapshot(with_vmstate("vm", state.size())).ok());
  ASSERT_TRUE(image.write({0, 40 * kKib}, 8).ok());
  ASSERT_TRUE(image.close().ok());

  const testing::ImageFile file{testing::temporary_path("vm"), "qcow2"};
  const std::string content = image.memory().content();
  ASSERT_TRUE(
      testing::write_file(
          file.path,
          absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(content.data()),
                              content.size()))
          .ok());
  const auto listed =
      testing::run_tool_ok({"qemu-img", "snapshot", "-l", file.path});
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_TRUE(absl::StrContains(*listed, "200 KiB")) << *listed;
  ASSERT_TRUE(
      testing::run_tool_ok({"qemu-img", "snapshot", "-a", "vm", file.path})
          .ok());
  EXPECT_TRUE(testing::qemu_check(file).ok());
  const auto applied = testing::read_file(file.path);
  ASSERT_TRUE(applied.ok());
  const auto copy =
      image.open_copy(std::string(applied->begin(), applied->end()));
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_TRUE(get(**copy, state.size(), 0) == state);
  EXPECT_TRUE(testing::reads_as(**copy, {0, 40 * kKib}, 7));
  ::unlink(file.path.c_str());
}

TEST(VmState, IsForgottenByAResize) {
  MemoryImage image(small_image());
  ASSERT_TRUE(put(image.driver(), pattern(1000, 's'), 0).ok());
  ASSERT_TRUE(
      image.driver().set_length(400 * kKib, SetLengthMode::kExact).ok());
  EXPECT_TRUE(image.reads_as({0, 400 * kKib}, 0));
  EXPECT_EQ(get(image.driver(), 1000, 0), std::string(1000, '\0'));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(VmState, EndsWhereTheL1TableDoes) {
  MemoryImage image(small_image());
  const uint64_t most = (uint64_t{4194304} - 2) * 32 * kKib;
  EXPECT_EQ(get(image.driver(), 10, most - 10), std::string(10, '\0'));
  std::string text(11, 'x');
  const IoVector qiov(text.data(), text.size());
  for (const uint64_t position : {most - 10, UINT64_MAX, UINT64_MAX - 11}) {
    EXPECT_TRUE(
        absl::IsOutOfRange(image.driver().write_vmstate(qiov, position)));
    EXPECT_TRUE(
        absl::IsOutOfRange(image.driver().read_vmstate(qiov, position)));
  }
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open(/*read_only=*/true).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(image.driver().write_vmstate(qiov, 0)));
}

// The L1 table grows beside requests.
TEST(VmState, GrowsBesideWriters) {
  MemoryImage image(small_image());
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&image, t] {
      for (uint64_t i = 0; i < 40; ++i) {
        const uint64_t at = (i * 4 + t) * 5000;
        EXPECT_TRUE(put(image.driver(), pattern(5000, 'v'), at).ok());
        EXPECT_TRUE(image.write({t * 10 * kKib, 10 * kKib}, 9).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t at = 0; at < 160 * 5000; at += 5000)
    ASSERT_TRUE(get(image.driver(), 5000, at) == pattern(5000, 'v')) << at;
  EXPECT_TRUE(image.reads_as({0, 40 * kKib}, 9));
  EXPECT_TRUE(image.close_and_check().ok());
}

}  // namespace
}  // namespace spindle::qcow2

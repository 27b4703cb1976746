#include "formats/cluster/l1_table.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle {
namespace {

using testing::MemoryDriver;
using testing::ObservingDriver;

constexpr uint64_t kCopied = uint64_t{1} << 63;
// As in a qcow2.
constexpr L1EntryBits kBits{.offset_mask = 0x00fffffffffffe00,
                            .own_flag = kCopied};
constexpr HostOffset kHost{0x600};

TEST(L1Table, LoadsAndMasks) {
  auto memory = std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = 0x1000});
  std::string bytes(24, '\0');
  auto* at = reinterpret_cast<uint8_t*>(bytes.data());
  store_big64(at, kCopied | 0x30000);
  store_big64(at + 16, 0x7f000000000501ff);
  memory->set_content(kHost.bytes, bytes);
  ByteChannel channel(memory);
  L1Table table(kHost, 3, kBits);
  ASSERT_TRUE(table.load(&channel).ok());
  EXPECT_EQ(table.l2_table(0).bytes, 0x30000u);
  EXPECT_EQ(table.l2_table(1).bytes, 0u);
  EXPECT_EQ(table.l2_table(2).bytes, 0x50000u);
  EXPECT_TRUE(table.take_dirty().empty());
}

TEST(L1Table, AnEmptyTableReadsNothing) {
  auto file = std::make_shared<ObservingDriver>(
      std::make_shared<MemoryDriver>(MemoryDriver::Options{}));
  ByteChannel channel(file);
  L1Table table(HostOffset{0}, 0, kBits);
  EXPECT_TRUE(table.load(&channel).ok());
  EXPECT_EQ(file->total_count(), 0u);
}

TEST(L1Table, AFailedLoadIsReported) {
  auto file = std::make_shared<ObservingDriver>(std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = 4096}));
  file->fail_at({.purpose = Purpose::kL1Load}, EIO);
  ByteChannel channel(file);
  L1Table table(HostOffset{512}, 8, kBits);
  EXPECT_FALSE(table.load(&channel).ok());
}

TEST(L1Table, PublishesWhatWasCreated) {
  L1Table table(kHost, 10, kBits);
  ASSERT_TRUE(table.begin_create(4));
  EXPECT_EQ(table.l2_table(4).bytes, 0u);
  table.end_create(4, HostOffset{0x70000});
  EXPECT_EQ(table.l2_table(4).bytes, 0x70000u);
  EXPECT_FALSE(table.begin_create(4));

  const std::vector<L1Table::Piece> pieces = table.take_dirty();
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].first_entry, 4u);
  EXPECT_EQ(table.host_of(pieces[0]).bytes, kHost.bytes + 4 * 8);
  ASSERT_EQ(pieces[0].bytes.size(), 8u);
  EXPECT_EQ(load_big64(pieces[0].bytes.data()), kCopied | 0x70000);
  EXPECT_TRUE(table.take_dirty().empty());
  table.restore(pieces);
  EXPECT_EQ(table.take_dirty().size(), 1u);
}

TEST(L1Table, WhoGivesUpLeavesItToTheNext) {
  L1Table table(kHost, 2, kBits);
  ASSERT_TRUE(table.begin_create(1));
  table.end_create(1, HostOffset{0});
  EXPECT_TRUE(table.take_dirty().empty());
  EXPECT_TRUE(table.begin_create(1));
  table.end_create(1, HostOffset{512});
}

TEST(L1Table, NeighboursAreWrittenTogether) {
  L1Table table(kHost, 1000, kBits);
  for (uint64_t index : {3, 5, 66, 67, 900}) {
    ASSERT_TRUE(table.begin_create(index));
    table.end_create(index, HostOffset{(index + 1) << 16});
  }
  const std::vector<L1Table::Piece> pieces = table.take_dirty();
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_EQ(pieces[0].first_entry, 3u);
  EXPECT_EQ(pieces[0].bytes.size(), 64u * 8);
  // Between them stands what stood there.
  EXPECT_EQ(load_big64(&pieces[0].bytes[8]), 0u);
  EXPECT_EQ(load_big64(&pieces[0].bytes[16]), kCopied | uint64_t{6} << 16);
  EXPECT_EQ(pieces[1].first_entry, 67u);
  EXPECT_EQ(pieces[2].first_entry, 900u);
}

TEST(L1Table, OthersWaitForTheCreator) {
  constexpr int kThreads = 4;
  constexpr uint64_t kTables = 300;
  L1Table table(kHost, kTables, kBits);
  std::vector<std::atomic<int>> created(kTables);
  std::vector<std::atomic<int>> given_up(kTables);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (uint64_t i = 0; i < kTables; ++i) {
        while (table.begin_create(i)) {
          // Every third table fails once.
          const bool fails = i % 3 == 0 && given_up[i].fetch_add(1) == 0;
          if (!fails) ++created[i];
          table.end_create(i, HostOffset{fails ? 0 : (i + 1) << 16});
        }
        ASSERT_EQ(table.l2_table(i).bytes, (i + 1) << 16);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t i = 0; i < kTables; ++i) EXPECT_EQ(created[i].load(), 1) << i;
}

}  // namespace
}  // namespace spindle

#include "formats/vdi/block_map.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/byte_order.h"
#include "formats/vdi/layout.h"
#include "gtest/gtest.h"

namespace spindle::vdi {
namespace {

TEST(BlockMap, FreeAndZeroedBlocksHaveNoPlace) {
  const BlockMap map({kFree, 1, kZeroed, 0});
  EXPECT_FALSE(map.find(0).has_value());
  EXPECT_EQ(map.find(1), 1u);
  EXPECT_FALSE(map.find(2).has_value());
  EXPECT_EQ(map.find(3), 0u);
}

TEST(BlockMap, TakesTheLowestBlockThatNobodyNames) {
  BlockMap map({kFree, 3, kFree, 0, kFree});
  ASSERT_TRUE(map.prepare_for_changes().ok());
  EXPECT_EQ(map.take_free(), 1u);
  EXPECT_EQ(map.take_free(), 2u);
  EXPECT_EQ(map.take_free(), 4u);
  EXPECT_FALSE(map.take_free().has_value());
  map.give_back(2);
  EXPECT_EQ(map.take_free(), 2u);
}

TEST(BlockMap, CountsUpToTheLastBlockTaken) {
  BlockMap map({kFree, kFree, kFree, 0});
  ASSERT_TRUE(map.prepare_for_changes().ok());
  EXPECT_EQ(map.take_changes().allocated_count, 1u);
  EXPECT_EQ(map.take_free(), 1u);
  EXPECT_EQ(map.take_free(), 2u);
  map.set(0, 2);
  map.give_back(1);
  EXPECT_EQ(map.take_changes().allocated_count, 3u);
  EXPECT_EQ(map.take_free(), 1u);
  map.give_back(1);
  EXPECT_EQ(map.take_changes().allocated_count, 3u);
}

TEST(BlockMap, RefusesChangesIfTwoEntriesAreTheSame) {
  BlockMap map({0, 1, 0});
  const absl::Status status = map.prepare_for_changes();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_NE(status.message().find("entry 2"), std::string::npos) << status;
  EXPECT_NE(status.message().find("block 0"), std::string::npos) << status;
}

TEST(BlockMap, RefusesChangesIfAnEntryIsOutOfRange) {
  BlockMap map({0, 3, 1});
  const absl::Status status = map.prepare_for_changes();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_NE(status.message().find("entry 1"), std::string::npos) << status;
  EXPECT_NE(status.message().find("limit is 3"), std::string::npos) << status;
}

// 300 entries: two whole sectors of 128, and 44.
TEST(BlockMap, ChangesAreSectorsOnceEach) {
  BlockMap map(std::vector<uint32_t>(300, kFree));
  ASSERT_TRUE(map.prepare_for_changes().ok());
  EXPECT_TRUE(map.take_changes().runs.empty());
  for (const uint32_t index : {299u, 0u, 127u})
    map.set(index, *map.take_free());
  const BlockMap::Changes changes = map.take_changes();
  EXPECT_TRUE(map.take_changes().runs.empty());
  ASSERT_EQ(changes.runs.size(), 2u);
  EXPECT_EQ(changes.allocated_count, 3u);
  EXPECT_EQ(changes.runs[0].offset, 0u);
  ASSERT_EQ(changes.runs[0].bytes.size(), 512u);
  EXPECT_EQ(load_little32(&changes.runs[0].bytes[0]), 1u);
  EXPECT_EQ(load_little32(&changes.runs[0].bytes[4]), kFree);
  EXPECT_EQ(load_little32(&changes.runs[0].bytes[508]), 2u);
  EXPECT_EQ(changes.runs[1].offset, 1024u);
  ASSERT_EQ(changes.runs[1].bytes.size(), 44u * 4);
  EXPECT_EQ(load_little32(&changes.runs[1].bytes[43 * 4]), 0u);
}

TEST(BlockMap, NeighbouringSectorsAreOneRunAndComeBack) {
  BlockMap map(std::vector<uint32_t>(300, kFree));
  ASSERT_TRUE(map.prepare_for_changes().ok());
  for (const uint32_t index : {1u, 200u, 280u})
    map.set(index, *map.take_free());
  const BlockMap::Changes changes = map.take_changes();
  ASSERT_EQ(changes.runs.size(), 1u);
  EXPECT_EQ(changes.runs[0].bytes.size(), 300u * 4);
  map.put_back(changes);
  const BlockMap::Changes again = map.take_changes();
  ASSERT_EQ(again.runs.size(), 1u);
  EXPECT_EQ(again.runs[0].bytes, changes.runs[0].bytes);
}

}  // namespace
}  // namespace spindle::vdi

#include "engine/access.h"

#include <set>
#include <string>

#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(Access, EveryPurposeHasANameOfItsOwn) {
  std::set<std::string> names;
  for (int i = 0; i < kPurposeCount; ++i) {
    names.emplace(purpose_name(static_cast<Purpose>(i)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kPurposeCount));
  EXPECT_EQ(names.count("unknown"), 0u);
}

TEST(Access, NamesAreThoseThatBlkdebugUses) {
  EXPECT_EQ(purpose_name(Purpose::kL2Update), "l2_update");
  EXPECT_EQ(purpose_name(Purpose::kRefblockAllocHookup),
            "refblock_alloc_hookup");
  EXPECT_EQ(purpose_name(Purpose::kFlushToDisk), "flush_to_disk");
}

}  // namespace
}  // namespace spindle

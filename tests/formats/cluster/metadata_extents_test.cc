#include "formats/cluster/metadata_extents.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

TEST(MetadataExtents, FindsWhatARangeTouches) {
  MetadataExtents extents;
  ASSERT_TRUE(extents.add(MetadataKind::kHeader, {0, 512}).ok());
  ASSERT_TRUE(extents.add(MetadataKind::kL2Table, {1024, 512}).ok());
  EXPECT_EQ(extents.find_overlap({511, 1}), MetadataKind::kHeader);
  EXPECT_EQ(extents.find_overlap({512, 512}), std::nullopt);
  EXPECT_EQ(extents.find_overlap({512, 513}), MetadataKind::kL2Table);
  EXPECT_EQ(extents.find_overlap({1535, 100}), MetadataKind::kL2Table);
  EXPECT_EQ(extents.find_overlap({1536, 1000}), std::nullopt);
  // Several: any of them.
  EXPECT_NE(extents.find_overlap({0, 4096}), std::nullopt);
}

TEST(MetadataExtents, RefusesOverlapAndNamesBoth) {
  MetadataExtents extents;
  ASSERT_TRUE(extents.add(MetadataKind::kRefcountTable, {4096, 8192}).ok());
  const absl::Status status = extents.add(MetadataKind::kL1Table, {8192, 4096});
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "L1 table"));
  EXPECT_TRUE(absl::StrContains(status.message(), "refcount table"));
  EXPECT_TRUE(absl::StrContains(status.message(), "8192"));
}

TEST(MetadataExtents, AnEmptyTableIsNowhere) {
  MetadataExtents extents;
  EXPECT_TRUE(extents.add(MetadataKind::kL1Table, {0, 0}).ok());
  EXPECT_TRUE(extents.add(MetadataKind::kHeader, {0, 512}).ok());
}

TEST(MetadataExtents, ClearForgetsAll) {
  MetadataExtents extents;
  ASSERT_TRUE(extents.add(MetadataKind::kHeader, {0, 512}).ok());
  extents.clear();
  EXPECT_EQ(extents.find_overlap({0, 512}), std::nullopt);
  EXPECT_TRUE(extents.add(MetadataKind::kHeader, {0, 512}).ok());
}

TEST(MetadataExtents, NamesEveryKind) {
  for (MetadataKind kind :
       {MetadataKind::kHeader, MetadataKind::kL1Table, MetadataKind::kL2Table,
        MetadataKind::kRefcountTable, MetadataKind::kRefcountBlock}) {
    EXPECT_NE(metadata_kind_name(kind), "metadata");
  }
}

TEST(MetadataExtents, AgreesWithAListOfRanges) {
  struct Entered {
    ByteRange range;
    MetadataKind kind;
  };
  constexpr uint64_t kUnits = 200;
  std::mt19937_64 random(testing::test_seed());
  MetadataExtents extents;
  std::vector<Entered> model;
  const auto overlapping = [&](ByteRange range) {
    std::vector<MetadataKind> kinds;
    for (const Entered& entered : model) {
      if (entered.range.overlaps(range)) kinds.push_back(entered.kind);
    }
    return kinds;
  };
  for (int step = 0; step < 20000; ++step) {
    const ByteRange range{random() % kUnits * 512, (1 + random() % 8) * 512};
    switch (random() % 4) {
      case 0: {
        const auto kind = static_cast<MetadataKind>(random() % 5);
        const bool is_free = overlapping(range).empty();
        ASSERT_EQ(extents.add(kind, range).ok(), is_free);
        if (is_free) model.push_back({range, kind});
        break;
      }
      case 1:
        if (!model.empty()) {
          const size_t at = random() % model.size();
          extents.remove(model[at].range);
          model.erase(model.begin() + static_cast<ptrdiff_t>(at));
        }
        break;
      default: {
        const auto found = extents.find_overlap(range);
        const std::vector<MetadataKind> expected = overlapping(range);
        ASSERT_EQ(found.has_value(), !expected.empty());
        if (found.has_value()) {
          ASSERT_NE(std::find(expected.begin(), expected.end(), *found),
                    expected.end());
        }
      }
    }
  }
}

}  // namespace
}  // namespace spindle

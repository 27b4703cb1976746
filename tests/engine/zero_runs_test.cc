#include "engine/jobs/zero_runs.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

// Each letter is a sector: '.' of zeroes, anything else of data.
std::string runs(const std::string& sectors, uint64_t first_sector,
                 ZeroRunRules rules) {
  std::vector<uint8_t> bytes;
  for (const char c : sectors) bytes.insert(bytes.end(), 512, c == '.' ? 0 : 1);
  std::string found;
  for (uint64_t at = 0; at < bytes.size();) {
    const ZeroRun run = first_run(absl::MakeConstSpan(bytes).subspan(at),
                                  first_sector * 512 + at, rules);
    EXPECT_EQ(run.length % 512, 0u);
    absl::StrAppend(&found, found.empty() ? "" : " ", run.zero ? "z" : "d",
                    run.length / 512);
    at += run.length;
  }
  return found;
}

TEST(ZeroRuns, AreAsTheyAreWithoutRules) {
  EXPECT_EQ(runs("xx..x.", 0, {}), "d2 z2 d1 z1");
  EXPECT_EQ(runs("....", 7, {}), "z4");
  EXPECT_EQ(runs("x", 7, {}), "d1");
}

TEST(ZeroRuns, BeginAndEndAtTheAlignmentOfTheImage) {
  const ZeroRunRules rules{.alignment_bytes = 4 * 512};
  EXPECT_EQ(runs("x.......", 0, rules), "d4 z4");
  EXPECT_EQ(runs("....x...", 0, rules), "z4 d4");
  EXPECT_EQ(runs(".....x..", 0, rules), "z4 d4");
  // From sector 2 of an aligned unit on.
  EXPECT_EQ(runs("......", 2, rules), "z6");
  EXPECT_EQ(runs("...x..", 2, rules), "z2 d4");
  EXPECT_EQ(runs(".x....", 2, rules), "d2 z4");
}

TEST(ZeroRuns, ThatAreShortBehindDataAreData) {
  const ZeroRunRules rules{.min_zeroes_bytes = 3 * 512};
  EXPECT_EQ(runs("x..x...x", 0, rules), "d4 z3 d1");
  // At the end and at the start they are zeroes.
  EXPECT_EQ(runs("x..", 0, rules), "d1 z2");
  EXPECT_EQ(runs("..x", 0, rules), "z2 d1");
}

TEST(ZeroRuns, NeverCrossTheEnd) {
  const ZeroRunRules rules{.alignment_bytes = 8 * 512};
  EXPECT_EQ(runs("x..", 0, rules), "d3");
  EXPECT_EQ(runs("..", 0, rules), "z2");
}

}  // namespace
}  // namespace spindle

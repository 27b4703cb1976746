#include "engine/cache_mode.h"

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

struct Known {
  CacheMode mode;
  absl::string_view name;
  bool direct;
  bool no_flush;
  bool writethrough;
};

constexpr Known kKnown[] = {
    {CacheMode::kWriteback, "writeback", false, false, false},
    {CacheMode::kWritethrough, "writethrough", false, false, true},
    {CacheMode::kNone, "none", true, false, false},
    {CacheMode::kDirectsync, "directsync", true, false, true},
    {CacheMode::kUnsafe, "unsafe", false, true, false},
};

TEST(CacheMode, NamesGoBothWays) {
  for (const Known& known : kKnown) {
    const absl::StatusOr<CacheMode> parsed = parse_cache_mode(known.name);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, known.mode) << known.name;
    EXPECT_EQ(cache_mode_name(known.mode), known.name);
  }
}

TEST(CacheMode, OtherNamesAreRefusedWithTheKnownOnes) {
  for (absl::string_view name :
       {"", "Writeback", "writeback ", "write", "off", "nonesuch"}) {
    const absl::StatusOr<CacheMode> parsed = parse_cache_mode(name);
    EXPECT_TRUE(absl::IsInvalidArgument(parsed.status())) << name;
    EXPECT_TRUE(absl::StrContains(parsed.status().message(), name));
    for (const Known& known : kKnown) {
      EXPECT_TRUE(absl::StrContains(parsed.status().message(), known.name));
    }
  }
}

TEST(CacheMode, SaysHowTheFileIsOpenedWhateverWasSetBefore) {
  for (const Known& known : kKnown) {
    for (bool before : {false, true}) {
      OpenOptions options;
      options.direct = before;
      options.no_flush = before;
      apply_cache_mode(known.mode, &options);
      EXPECT_EQ(options.direct, known.direct) << known.name;
      EXPECT_EQ(options.no_flush, known.no_flush) << known.name;
    }
  }
}

TEST(CacheMode, LeavesOtherOptionsAlone) {
  OpenOptions options;
  options.read_only = true;
  options.lock = false;
  options.driver_options["l2-cache-size"] = "1M";
  apply_cache_mode(CacheMode::kNone, &options);
  EXPECT_TRUE(options.read_only);
  EXPECT_FALSE(options.lock);
  EXPECT_EQ(options.driver_options.size(), 1u);
}

TEST(CacheMode, TwoOfThemWriteThrough) {
  for (const Known& known : kKnown) {
    EXPECT_EQ(is_writethrough(known.mode), known.writethrough) << known.name;
  }
}

}  // namespace
}  // namespace spindle

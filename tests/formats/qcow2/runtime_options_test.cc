#include "formats/qcow2/runtime_options.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kKib = 1024;
constexpr uint64_t kMib = 1024 * kKib;

absl::StatusOr<RuntimeOptions> parse(const OptionMap& options,
                                     uint64_t size_bytes = 1024 * kMib,
                                     uint32_t cluster_bits = 16) {
  Header header;
  header.size_bytes = size_bytes;
  header.cluster_bits = cluster_bits;
  OpenOptions open;
  open.driver_options = options;
  return parse_runtime_options(open, header);
}

TEST(RuntimeOptions, SizesOfTheCaches) {
  const struct {
    const char* name;
    OptionMap options;
    uint64_t size_bytes;
    uint32_t cluster_bits;
    uint64_t l2;
    uint64_t refcount;
    uint32_t slice;
  } cases[] = {
      // 1 GiB in 64 KiB clusters: 16384 entries of 8 bytes; one refcount block.
      {"covers the image", {}, 1024 * kMib, 16, 128 * kKib, 64 * kKib, 4096},
      {"up to a limit", {}, uint64_t{1} << 44, 16, 32 * kMib, 8 * kMib, 4096},
      {"at least a few slices", {}, kMib, 16, 64 * kKib, 64 * kKib, 4096},
      {"slices no larger than clusters", {}, kMib, 9, 16 * kKib, 8 * kKib, 512},
      {"l2-cache-size",
       {{"l2-cache-size", "1M"}},
       1024 * kMib,
       16,
       kMib,
       64 * kKib,
       4096},
      {"refcount-cache-size",
       {{"refcount-cache-size", "256k"}},
       1024 * kMib,
       16,
       128 * kKib,
       256 * kKib,
       4096},
      {"plain number",
       {{"l2-cache-size", "1048576"}},
       1024 * kMib,
       16,
       kMib,
       64 * kKib,
       4096},
      {"gigabytes",
       {{"l2-cache-size", "1G"}},
       1024 * kMib,
       16,
       1024 * kMib,
       64 * kKib,
       4096},
      {"cache-size: the L2 tables first",
       {{"cache-size", "1M"}},
       1024 * kMib,
       16,
       128 * kKib,
       896 * kKib,
       4096},
      {"cache-size and one part",
       {{"cache-size", "1M"}, {"l2-cache-size", "768K"}},
       1024 * kMib,
       16,
       768 * kKib,
       256 * kKib,
       4096},
      {"cache-size and the other part",
       {{"cache-size", "1M"}, {"refcount-cache-size", "768K"}},
       1024 * kMib,
       16,
       256 * kKib,
       768 * kKib,
       4096},
      {"slice size",
       {{"l2-cache-entry-size", "64k"}},
       1024 * kMib,
       16,
       1024 * kKib,
       1024 * kKib,
       65536},
  };
  for (const auto& c : cases) {
    const auto result = parse(c.options, c.size_bytes, c.cluster_bits);
    ASSERT_TRUE(result.ok()) << c.name << ": " << result.status();
    EXPECT_EQ(result->l2_cache_bytes, c.l2) << c.name;
    EXPECT_EQ(result->refcount_cache_bytes, c.refcount) << c.name;
    EXPECT_EQ(result->slice_bytes, c.slice) << c.name;
  }
}

TEST(RuntimeOptions, RefusesAndNamesTheOption) {
  const struct {
    OptionMap options;
    const char* named;
  } cases[] = {
      {{{"l2-cache-size", ""}}, "l2-cache-size"},
      {{{"l2-cache-size", "x"}}, "l2-cache-size"},
      {{{"l2-cache-size", "-1"}}, "l2-cache-size"},
      {{{"l2-cache-size", "1.5"}}, "l2-cache-size"},
      {{{"l2-cache-size", "k"}}, "l2-cache-size"},
      {{{"l2-cache-size", "18446744073709551616"}}, "l2-cache-size"},
      {{{"refcount-cache-size", "99999999999G"}}, "refcount-cache-size"},
      {{{"cache-size", "1M"}, {"l2-cache-size", "2M"}}, "cache-size"},
      {{{"cache-size", "1M"},
        {"l2-cache-size", "768k"},
        {"refcount-cache-size", "512k"}},
       "cache-size"},
      {{{"l2-cache-entry-size", "1000"}}, "l2-cache-entry-size"},
      {{{"l2-cache-entry-size", "256"}}, "l2-cache-entry-size"},
      {{{"l2-cache-entry-size", "0"}}, "l2-cache-entry-size"},
      {{{"l2-cache-entry-size", "128k"}}, "l2-cache-entry-size"},
      {{{"reuse", "sometimes"}}, "reuse"},
      {{{"discard-no-unref", "perhaps"}}, "discard-no-unref"},
      {{{"no-such-option", "1"}}, "no-such-option"},
  };
  for (const auto& c : cases) {
    const auto result = parse(c.options);
    EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << c.named;
    EXPECT_TRUE(absl::StrContains(result.status().message(), c.named))
        << result.status();
  }
}

TEST(RuntimeOptions, ImmenseSizesDoNotWrapAround) {
  const auto largest =
      parse({{"cache-size", "18446744073709551615"}}, (uint64_t{1} << 63) - 1);
  ASSERT_TRUE(largest.ok()) << largest.status();
  EXPECT_EQ(largest->l2_cache_bytes, 32 * kMib);
  EXPECT_TRUE(parse({}, (uint64_t{1} << 63) - 1, 21).ok());
}

TEST(RuntimeOptions, ReuseAndDiscard) {
  EXPECT_EQ(parse({})->reuse, ReusePolicy::kLazy);
  EXPECT_EQ(parse({{"reuse", "lazy"}})->reuse, ReusePolicy::kLazy);
  EXPECT_EQ(parse({{"reuse", "lowest"}})->reuse, ReusePolicy::kLowest);
  EXPECT_TRUE(parse({})->punch_holes);
  EXPECT_FALSE(parse({})->discard_no_unref);
  EXPECT_FALSE(parse({{"discard-no-unref", "off"}})->discard_no_unref);
  EXPECT_TRUE(parse({{"discard-no-unref", "on"}})->discard_no_unref);
  OpenOptions open;
  open.pass_discard_through = false;
  EXPECT_FALSE(parse_runtime_options(open, Header())->punch_holes);
}

}  // namespace
}  // namespace spindle::qcow2

#include "formats/filters/blkdebug_config.h"

#include <unistd.h>

#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

absl::StatusOr<BlkdebugConfig> from_options(const OptionMap& options) {
  FilterOptions own("blkdebug", options);
  return take_blkdebug_options(&own);
}

TEST(BlkdebugConfig, ReadsAFile) {
  BlkdebugConfig config;
  const absl::Status status = parse_blkdebug_file(
      "# a comment\n"
      "\n"
      "[inject-error]\n"
      "event = \"l2_load\"\n"
      "errno = \"28\"\n"
      "once = \"on\"\n"
      "sector = \"8\"\n"
      "  [set-state]\n"
      "  event = \"write_aio\"\n"
      "  state = \"1\"\n"
      "  new_state = \"2\"\n"
      "[inject-error]\n"
      "event = \"flush_to_disk\"\n"
      "state = \"2\"\n"
      "iotype = \"flush\"\n"
      "probability = \"0.5\"\n",
      &config);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(config.errors.size(), 2u);
  EXPECT_EQ(config.errors[0].event, blkdebug_event("l2_load"));
  EXPECT_EQ(config.errors[0].error_number, 28);
  EXPECT_TRUE(config.errors[0].once);
  EXPECT_EQ(config.errors[0].sector, Sector(8));
  EXPECT_EQ(config.errors[1].error_number, 5);
  EXPECT_EQ(config.errors[1].state, 2);
  EXPECT_EQ(config.errors[1].io, BlkdebugIo::kFlush);
  EXPECT_EQ(config.errors[1].probability, 0.5);
  EXPECT_FALSE(config.errors[1].sector.has_value());
  ASSERT_EQ(config.set_states.size(), 1u);
  EXPECT_EQ(config.set_states[0].state, 1);
  EXPECT_EQ(config.set_states[0].new_state, 2);
}

TEST(BlkdebugConfig, TakesOptionsAndAFile) {
  const std::string path = testing::temporary_path("blkdebug");
  std::ofstream(path) << "[inject-error]\nevent = \"l1_update\"\n";
  const auto config = from_options({{"config", path},
                                    {"inject-error.0.event", "l2_update"},
                                    {"inject-error.0.immediately", "on"},
                                    {"inject-error.10.event", "none"},
                                    {"inject-error.10.sector", "-1"},
                                    {"set-state.3.event", "read_aio"},
                                    {"align", "4k"},
                                    {"max-discard", "1M"},
                                    {"seed", "77"}});
  ::unlink(path.c_str());
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->errors.size(), 3u);
  EXPECT_EQ(config->errors[0].event, blkdebug_event("l1_update"));
  EXPECT_EQ(config->errors[1].event, blkdebug_event("l2_update"));
  EXPECT_FALSE(config->errors[2].sector.has_value());
  EXPECT_EQ(config->set_states.size(), 1u);
  EXPECT_EQ(config->limits.align, 4096u);
  EXPECT_EQ(config->limits.max_discard, uint64_t{1} << 20);
  EXPECT_EQ(config->seed, 77u);
}

TEST(BlkdebugConfig, RefusesWhatMakesNoSense) {
  const struct {
    OptionMap options;
    absl::string_view says;
  } cases[] = {
      {{{"inject-error.0.event", "l2_foo"}}, "Invalid event name 'l2_foo'"},
      {{{"inject-error.0.errno", "5"}}, "Missing event name"},
      {{{"inject-error.0.event", "none"}, {"inject-error.0.iotype", "foo"}},
       "Invalid iotype 'foo'"},
      {{{"inject-error.0.event", "none"}, {"inject-error.0.foo", "1"}},
       "'inject-error' does not support the option 'foo'"},
      {{{"inject-error.0.event", "none"}, {"inject-error.0.errno", "-1"}},
       "errno is out of range"},
      {{{"inject-error.0.event", "none"},
        {"inject-error.0.errno", "9999999999"}},
       "errno is out of range"},
      {{{"inject-error.0.event", "none"}, {"inject-error.0.sector", "-2"}},
       "Invalid sector '-2'"},
      {{{"inject-error.0.event", "none"}, {"inject-error.0.probability", "2"}},
       "probability is not between 0 and 1"},
      {{{"inject-error.0.event", "none"},
        {"inject-error.0.probability", "nan"}},
       "probability is not between 0 and 1"},
      {{{"inject-error.x.event", "none"}}, "'inject-error.x.event'"},
      {{{"set-state.0.state", "1"}}, "Missing event name"},
      {{{"align", "much"}}, "'align'"},
      {{{"config", "/nowhere/at/all"}}, "Could not read blkdebug config file"},
      {{{"foo", "1"}}, "does not support the option 'foo'"},
  };
  for (const auto& one : cases) {
    const auto config = from_options(one.options);
    ASSERT_FALSE(config.ok()) << one.says;
    EXPECT_TRUE(absl::StrContains(config.status().message(), one.says))
        << config.status();
  }
}

TEST(BlkdebugConfig, RefusesFilesThatAreNone) {
  for (const char* text :
       {"event = \"none\"\n", "[inject-err]\n", "[inject-error\n", "[\n",
        "[inject-error]\nevent = none\n", "[inject-error]\nevent \"none\"\n",
        "[inject-error]\n = \"none\"\n", "[inject-error]\nevent = \"no\"ne\"\n",
        "[set-state]\n", "[inject-error]\nevent = \"none\"\nfoo = \"1\"\n"}) {
    BlkdebugConfig config;
    EXPECT_FALSE(parse_blkdebug_file(text, &config).ok()) << text;
  }
}

TEST(BlkdebugConfig, LimitsAreMultiples) {
  const auto status = [](const BlkdebugLimits& limits) {
    return check_blkdebug_limits(limits, 512);
  };
  BlkdebugLimits good{.align = 4096,
                      .max_transfer = 65536,
                      .opt_write_zero = 15 << 20,
                      .max_write_zero = 30 << 20,
                      .opt_discard = 65536,
                      .max_discard = 1 << 20};
  EXPECT_TRUE(status(good).ok()) << status(good);
  EXPECT_TRUE(status(BlkdebugLimits()).ok());
  const struct {
    uint64_t BlkdebugLimits::* limit;
    uint64_t value;
    absl::string_view name;
  } cases[] = {
      {&BlkdebugLimits::align, 3, "align 3"},
      {&BlkdebugLimits::align, uint64_t{1} << 31, "align 2147483648"},
      {&BlkdebugLimits::max_transfer, 1000, "max-transfer 1000"},
      {&BlkdebugLimits::opt_write_zero, 512, "opt-write-zero 512"},
      {&BlkdebugLimits::max_write_zero, 1 << 20, "max-write-zero 1048576"},
      {&BlkdebugLimits::opt_discard, 4097, "opt-discard 4097"},
      {&BlkdebugLimits::max_discard, 4096, "max-discard 4096"},
  };
  for (const auto& one : cases) {
    BlkdebugLimits bad = good;
    bad.*one.limit = one.value;
    EXPECT_TRUE(absl::StrContains(status(bad).message(), one.name))
        << status(bad);
  }
}

}  // namespace
}  // namespace spindle

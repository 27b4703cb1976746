#include "formats/filters/blkdebug_rules.h"

#include <errno.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

const ByteRange kAnywhere{0, 512};

BlkdebugInjectError on(absl::string_view event) {
  BlkdebugInjectError rule;
  rule.event = blkdebug_event(event);
  return rule;
}

int write_fails_with(BlkdebugRules& rules) {
  return errno_of(rules.check(BlkdebugIo::kWrite, kAnywhere)).value_or(0);
}

TEST(BlkdebugEvents, HaveQemusNamesAndThoseOfPurposes) {
  for (int i = 0; i < kPurposeCount; ++i) {
    const auto purpose = static_cast<Purpose>(i);
    ASSERT_FALSE(blkdebug_events_of(purpose).empty());
    EXPECT_TRUE(find_blkdebug_event(purpose_name(purpose)).has_value());
  }
  EXPECT_EQ(blkdebug_event_name(blkdebug_event("l2_update")), "l2_update");
  EXPECT_FALSE(find_blkdebug_event("l2_foo").has_value());
  EXPECT_EQ(blkdebug_events_of(Purpose::kClusterAlloc),
            (std::vector<BlkdebugEvent>{blkdebug_event("cluster_alloc"),
                                        blkdebug_event("write_aio")}));
  EXPECT_EQ(blkdebug_events_of(Purpose::kFlushToDisk).size(), 2u);
}

TEST(BlkdebugRules, AnErrorStaysActiveUntilAnotherComes) {
  BlkdebugRules rules(1);
  BlkdebugInjectError first = on("l2_update");
  first.error_number = ENOSPC;
  rules.add(first);
  rules.add(on("l2_load"));
  EXPECT_EQ(write_fails_with(rules), 0);
  rules.raise(blkdebug_event("read_aio"));
  EXPECT_EQ(write_fails_with(rules), 0);
  rules.raise(blkdebug_event("l2_update"));
  EXPECT_EQ(write_fails_with(rules), ENOSPC);
  rules.raise(blkdebug_event("read_aio"));
  EXPECT_EQ(write_fails_with(rules), ENOSPC);
  rules.raise(blkdebug_event("l2_load"));
  EXPECT_EQ(write_fails_with(rules), EIO);
}

TEST(BlkdebugRules, OnceIsOnce) {
  BlkdebugRules rules(1);
  BlkdebugInjectError rule = on("l2_update");
  rule.once = true;
  rules.add(rule);
  rules.raise(rule.event);
  EXPECT_EQ(write_fails_with(rules), EIO);
  EXPECT_EQ(write_fails_with(rules), 0);
  rules.raise(rule.event);
  EXPECT_EQ(write_fails_with(rules), 0);
}

TEST(BlkdebugRules, FitSectorAndType) {
  BlkdebugRules rules(1);
  BlkdebugInjectError rule = on("none");
  rule.sector = Sector(8);
  rule.io = BlkdebugIo::kRead;
  rules.add(rule);
  rules.raise(rule.event);
  const auto fails = [&](BlkdebugIo io, ByteRange range) {
    return !rules.check(io, range).ok();
  };
  EXPECT_TRUE(fails(BlkdebugIo::kRead, {4096, 512}));
  EXPECT_TRUE(fails(BlkdebugIo::kRead, {0, 8192}));
  EXPECT_FALSE(fails(BlkdebugIo::kRead, {0, 4096}));
  EXPECT_FALSE(fails(BlkdebugIo::kRead, {4608, 512}));
  EXPECT_FALSE(fails(BlkdebugIo::kWrite, {4096, 512}));
  EXPECT_FALSE(fails(BlkdebugIo::kFlush, {}));
}

TEST(BlkdebugRules, WithoutATypeAllButBlockStatusFails) {
  BlkdebugRules rules(1);
  rules.add(on("none"));
  rules.raise(blkdebug_event("none"));
  for (const absl::string_view name :
       {"read", "write", "write-zeroes", "discard", "flush"}) {
    EXPECT_FALSE(rules.check(*find_blkdebug_io(name), kAnywhere).ok()) << name;
  }
  EXPECT_TRUE(rules.check(BlkdebugIo::kBlockStatus, kAnywhere).ok());
  EXPECT_FALSE(find_blkdebug_io("foo").has_value());
}

TEST(BlkdebugRules, DependOnTheState) {
  BlkdebugRules rules(1);
  BlkdebugInjectError rule = on("read_aio");
  rule.state = 2;
  rules.add(rule);
  rules.add(BlkdebugSetState{blkdebug_event("write_aio"), 1, 2});
  rules.add(BlkdebugSetState{blkdebug_event("write_aio"), 2, 3});
  rules.raise(blkdebug_event("read_aio"));
  EXPECT_EQ(write_fails_with(rules), 0);
  // From 1 to 2, and not on to 3: rules see the state before the event.
  rules.raise(blkdebug_event("write_aio"));
  rules.raise(blkdebug_event("read_aio"));
  EXPECT_EQ(write_fails_with(rules), EIO);
}

TEST(BlkdebugRules, ProbabilityFollowsTheSeed) {
  const auto failures = [](uint64_t seed) {
    BlkdebugRules rules(seed);
    BlkdebugInjectError rule = on("none");
    rule.probability = 0.25;
    rules.add(rule);
    rules.raise(rule.event);
    std::string text;
    for (int i = 0; i < 400; ++i) {
      const absl::Status status = rules.check(BlkdebugIo::kRead, kAnywhere);
      text.push_back(status.ok() ? '.' : 'x');
      EXPECT_TRUE(
          status.ok() ||
          absl::StrContains(status.message(), absl::StrCat("seed ", seed)));
    }
    return text;
  };
  const std::string first = failures(7);
  EXPECT_EQ(first, failures(7));
  EXPECT_NE(first, failures(8));
  const auto count = std::count(first.begin(), first.end(), 'x');
  EXPECT_GT(count, 50);
  EXPECT_LT(count, 150);
}

TEST(BlkdebugRules, ABreakpointStopsOneThreadUntilItIsResumed) {
  BlkdebugRules rules(1);
  const BlkdebugEvent event = blkdebug_event("l2_update");
  EXPECT_FALSE(rules.resume("A").ok());
  rules.set_breakpoint(event, "A");
  EXPECT_FALSE(rules.is_suspended("A"));
  std::thread thread([&] { rules.raise(event); });
  EXPECT_FALSE(rules.wait_until_suspended("B", absl::Milliseconds(1)));
  EXPECT_TRUE(rules.wait_until_suspended("A", absl::InfiniteDuration()));
  EXPECT_TRUE(rules.is_suspended("A"));
  EXPECT_EQ(rules.take_newly_suspended(), std::vector<std::string>{"A"});
  EXPECT_TRUE(rules.take_newly_suspended().empty());
  rules.raise(event);  // only the first one stops
  EXPECT_TRUE(rules.resume("A").ok());
  thread.join();
  EXPECT_FALSE(rules.is_suspended("A"));
  rules.raise(event);
}

TEST(BlkdebugRules, RemovingABreakpointLetsGoOfWhatItHolds) {
  BlkdebugRules rules(1);
  const BlkdebugEvent event = blkdebug_event("l2_update");
  EXPECT_EQ(rules.remove_breakpoint("A").code(), absl::StatusCode::kNotFound);
  rules.set_breakpoint(event, "A");
  EXPECT_TRUE(rules.remove_breakpoint("A").ok());
  rules.raise(event);
  rules.set_breakpoint(event, "A");
  std::thread first([&] { rules.raise(event); });
  rules.wait_until_suspended("A");
  EXPECT_EQ(rules.suspended_count(), 1u);
  // None is left to be reached, as QEMU counts.
  size_t resumed = 0;
  EXPECT_EQ(rules.remove_breakpoint("A", &resumed).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(resumed, 1u);
  first.join();
  EXPECT_EQ(rules.suspended_count(), 0u);
  rules.set_breakpoint(event, "B");
  std::thread second([&] { rules.raise(event); });
  rules.wait_until_suspended("B");
  rules.resume_all();
  second.join();
}

}  // namespace
}  // namespace spindle

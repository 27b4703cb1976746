#include "threadpool/default_executor.h"

#include "gtest/gtest.h"
#include "tests/threadpool/work_items.h"

namespace spindle {
namespace {

// Passes with and without threads: that is what the target is for.
TEST(DefaultExecutor, RunsWork) {
  const std::unique_ptr<Executor> executor =
      make_executor({.width = 3, .name = "default"});
  EXPECT_TRUE(executor->width() == 3 || executor->width() == 0);
  const auto queue = executor->make_queue({.name = "q"});
  CountingItem item;
  ASSERT_TRUE(queue->submit(&item));
  executor->stop(Executor::StopMode::kRunQueued);
  EXPECT_EQ(item.ran.load(), 1);
}

TEST(DefaultExecutor, ReportsWhatItCannotCreate) {
  const auto executor = create_executor({.width = 1'000'000});
  EXPECT_TRUE(!executor.ok() || (*executor)->width() == 0);
}

}  // namespace
}  // namespace spindle

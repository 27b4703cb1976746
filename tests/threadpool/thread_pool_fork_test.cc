#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "tests/threadpool/work_items.h"
#include "threadpool/inline_executor.h"
#include "threadpool/thread_pool.h"

namespace spindle {
namespace {

// Runs `body` in a forked process, which must end by itself: the test's own
// time limit is what fails where it hangs.
bool holds_in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

class ForkTest : public testing::Test {
 protected:
  std::unique_ptr<ThreadPool> pool_ =
      *ThreadPool::create({.width = 3, .name = "fork"});
  std::shared_ptr<WorkQueue> queue_ =
      pool_->make_queue({.name = "q", .max_workers = 1});
};

TEST_F(ForkTest, ChildIsRefused) {
  EXPECT_TRUE(holds_in_child([&] {
    CountingItem item;
    return !queue_->submit(&item) && !queue_->withdraw(&item) &&
           !queue_->notify_after_batch(
               std::make_shared<CountingNotification>()) &&
           !pool_->make_queue({.name = "new"})->submit(&item);
  }));
}

TEST_F(ForkTest, ChildCanDestroyItsCopy) {
  HungItem hung;
  CountingItem queued;
  ASSERT_TRUE(queue_->submit(&hung));
  hung.entered.WaitForNotification();
  ASSERT_TRUE(queue_->submit(&queued));
  EXPECT_TRUE(holds_in_child([&] {
    if (queue_->withdraw(&hung) || !queue_->withdraw(&queued)) return false;
    pool_->stop(Executor::StopMode::kRunQueued);
    queue_.reset();
    pool_.reset();
    return true;
  }));
  hung.release.Notify();
  pool_->stop(Executor::StopMode::kRunQueued);
  EXPECT_EQ(queued.ran.load(), 1) << "the child's doings reached the parent";
}

TEST_F(ForkTest, ChildCannotCreateAPoolBesideACopy) {
  EXPECT_TRUE(holds_in_child([&] {
    return ThreadPool::create({.width = 2}).status().code() ==
           absl::StatusCode::kFailedPrecondition;
  }));
}

TEST_F(ForkTest, ParentGoesOn) {
  EXPECT_TRUE(holds_in_child([] { return true; }));
  CountingItem item;
  ASSERT_TRUE(queue_->submit(&item));
  pool_->stop(Executor::StopMode::kRunQueued);
  EXPECT_EQ(item.ran.load(), 1);
}

TEST(ForkInlineTest, ChildIsRefused) {
  InlineExecutor executor;
  const auto queue = executor.make_queue({.name = "q"});
  CountingItem queued;
  ASSERT_TRUE(queue->submit(&queued));
  EXPECT_TRUE(holds_in_child([&] {
    CountingItem item;
    return !queue->submit(&item) && !executor.run_one();
  }));
  executor.stop(Executor::StopMode::kRunQueued);
  EXPECT_EQ(queued.ran.load(), 1);
}

}  // namespace
}  // namespace spindle

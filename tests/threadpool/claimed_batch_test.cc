#include "threadpool/claimed_batch.h"

#include <memory>

#include "gtest/gtest.h"
#include "tests/threadpool/work_items.h"

namespace spindle {
namespace {

class ClaimedBatchTest : public testing::Test {
 protected:
  ClaimedBatchTest() {
    for (CountingItem& item : items_) queue_.push_back(&item);
    batch_.claim(queue_, 4);
  }

  CountingItem items_[6];
  WorkList queue_;
  ClaimedBatch batch_{0};
};

TEST_F(ClaimedBatchTest, TakesInOrderAndCounts) {
  EXPECT_EQ(queue_.size(), 2u);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(batch_.take(), &items_[i]);
  EXPECT_EQ(batch_.take(), nullptr);
  EXPECT_EQ(batch_.started_in_batch(), 4u);
  EXPECT_EQ(batch_.end(), 4u);
  EXPECT_EQ(batch_.started_in_batch(), 0u);
  EXPECT_EQ(batch_.look().started, 4u);
}

TEST_F(ClaimedBatchTest, WithdrawsWhatHasNotStarted) {
  EXPECT_EQ(batch_.take(), &items_[0]);
  EXPECT_FALSE(batch_.withdraw(&items_[0]));
  EXPECT_TRUE(batch_.withdraw(&items_[2]));
  EXPECT_FALSE(batch_.withdraw(&items_[2]));
  EXPECT_FALSE(batch_.withdraw(&items_[5]));  // still in the queue
  EXPECT_EQ(batch_.take(), &items_[1]);
  EXPECT_EQ(batch_.take(), &items_[3]);
}

TEST_F(ClaimedBatchTest, GivesBackToTheFrontInOrder) {
  EXPECT_EQ(batch_.take(), &items_[0]);
  EXPECT_EQ(batch_.give_back(queue_), 3u);
  EXPECT_EQ(batch_.take(), nullptr);
  for (int i = 1; i < 6; ++i) EXPECT_EQ(queue_.pop_front(), &items_[i]);
}

TEST_F(ClaimedBatchTest, KeepsANotificationOnce) {
  const auto one = std::make_shared<CountingNotification>();
  const auto two = std::make_shared<CountingNotification>();
  batch_.add(one);
  batch_.add(two);
  batch_.add(one);
  EXPECT_EQ(batch_.take_notifications().size(), 2u);
  EXPECT_TRUE(batch_.take_notifications().empty());
}

TEST_F(ClaimedBatchTest, LookSeesWhatWaits) {
  EXPECT_TRUE(batch_.look().waiting);
  while (batch_.take() != nullptr) {
  }
  EXPECT_FALSE(batch_.look().waiting);
  batch_.add(std::make_shared<CountingNotification>());
  EXPECT_TRUE(batch_.look().waiting);
}

}  // namespace
}  // namespace spindle

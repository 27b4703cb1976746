#include "threadpool/work_list.h"

#include "gtest/gtest.h"
#include "tests/threadpool/work_items.h"

namespace spindle {
namespace {

TEST(WorkList, IsFirstInFirstOut) {
  CountingItem a, b, c;
  WorkList list;
  list.push_back(&a);
  list.push_back(&b);
  list.push_front(&c);
  EXPECT_EQ(list.size(), 3u);
  EXPECT_EQ(list.pop_front(), &c);
  EXPECT_EQ(list.pop_front(), &a);
  EXPECT_EQ(list.pop_front(), &b);
  EXPECT_EQ(list.pop_front(), nullptr);
  EXPECT_TRUE(list.empty());
}

TEST(WorkList, RemovesFromAnywhere) {
  CountingItem items[4];
  WorkList list;
  for (CountingItem& item : items) list.push_back(&item);
  list.remove(&items[1]);
  list.remove(&items[0]);
  list.remove(&items[3]);
  EXPECT_EQ(list.front(), &items[2]);
  EXPECT_EQ(WorkList::after(&items[2]), nullptr);
  EXPECT_EQ(list.pop_back(), &items[2]);
  EXPECT_EQ(list.pop_back(), nullptr);
}

TEST(WorkList, KnowsWhichListHoldsAnItem) {
  CountingItem item;
  WorkList untagged;
  WorkList tagged(7);
  EXPECT_EQ(WorkList::holder(&item), nullptr);
  tagged.push_back(&item);
  EXPECT_EQ(WorkList::holder(&item), &tagged);
  EXPECT_EQ(WorkList::holder(&item)->tag(), 7u);
  untagged.push_back(tagged.pop_front());
  EXPECT_EQ(WorkList::holder(&item), &untagged);
  EXPECT_EQ(WorkList::holder(&item)->tag(), WorkList::kNoTag);
  untagged.remove(&item);
  EXPECT_EQ(WorkList::holder(&item), nullptr);
}

TEST(WorkListDeathTest, RefusesAnItemThatIsQueuedAlready) {
  CountingItem item;
  WorkList list;
  list.push_back(&item);
  EXPECT_DEATH(list.push_back(&item), "queued already");
}

TEST(WorkListDeathTest, RefusesToRemoveWhatItDoesNotHold) {
  CountingItem item;
  WorkList list;
  EXPECT_DEATH(list.remove(&item), "not in this list");
}

}  // namespace
}  // namespace spindle

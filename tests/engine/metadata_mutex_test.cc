#include "engine/metadata_mutex.h"

#include <thread>

#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(MetadataMutex, CountsWhatThisThreadHolds) {
  MetadataMutex flush(LockRank::kFlush);
  MetadataMutex allocator(LockRank::kAllocator);
  EXPECT_EQ(MetadataMutex::held_by_this_thread(), 0);
  {
    MetadataLock first(&flush);
    EXPECT_EQ(MetadataMutex::held_by_this_thread(), 1);
    {
      MetadataReaderLock second(&allocator);
      EXPECT_EQ(MetadataMutex::held_by_this_thread(), 2);
      std::thread other(
          [] { EXPECT_EQ(MetadataMutex::held_by_this_thread(), 0); });
      other.join();
    }
    EXPECT_EQ(MetadataMutex::held_by_this_thread(), 1);
  }
  EXPECT_EQ(MetadataMutex::held_by_this_thread(), 0);
}

TEST(MetadataMutex, AFailedTryHoldsNothing) {
  MetadataMutex mutex(LockRank::kFlush);
  MetadataLock lock(&mutex);
  std::thread other([&mutex] {
    if (mutex.try_lock()) {
      ADD_FAILURE() << "two threads hold one mutex";
      mutex.unlock();
    }
    EXPECT_EQ(MetadataMutex::held_by_this_thread(), 0);
  });
  other.join();
}

TEST(MetadataMutex, WaitingReleasesIt) {
  MetadataMutex mutex(LockRank::kFlush);
  absl::CondVar signal;
  bool ready = false;
  std::thread other([&] {
    MetadataLock lock(&mutex);
    ready = true;
    signal.Signal();
  });
  {
    MetadataLock lock(&mutex);
    while (!ready) mutex.wait(&signal);
    EXPECT_EQ(MetadataMutex::held_by_this_thread(), 1);
  }
  other.join();
  EXPECT_EQ(MetadataMutex::held_by_this_thread(), 0);
}

#ifndef NDEBUG
TEST(MetadataMutexDeathTest, OrderOfRanksIsAsserted) {
  MetadataMutex flush(LockRank::kFlush);
  MetadataMutex allocator(LockRank::kAllocator);
  EXPECT_DEATH(
      {
        MetadataLock first(&allocator);
        MetadataLock second(&flush);
      },
      "rank 1 acquired while");
}

TEST(MetadataMutexDeathTest, TwoOfOneRankAreAsserted) {
  MetadataMutex one(LockRank::kSlice);
  MetadataMutex two(LockRank::kSlice);
  EXPECT_DEATH(
      {
        MetadataLock first(&one);
        MetadataLock second(&two);
      },
      "acquired while");
}
#endif

}  // namespace
}  // namespace spindle

#include "threadpool/parker.h"

#include <thread>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(Parker, KeepsAWakeUpThatCameFirst) {
  Parker parker;
  parker.unpark();
  parker.park();
}

TEST(Parker, KeepsOneWakeUpOnly) {
  Parker parker;
  parker.unpark();
  parker.unpark();
  parker.park();
  EXPECT_FALSE(parker.park_for(absl::Microseconds(1)));
}

TEST(Parker, TellsAWakeUpFromATimeout) {
  Parker parker;
  EXPECT_FALSE(parker.park_for(absl::Microseconds(1)));
  parker.unpark();
  EXPECT_TRUE(parker.park_for(absl::Hours(1)));
}

// What one thread wrote before unpark() is seen after park(): run under TSan.
TEST(Parker, HandsDataBackAndForth) {
  constexpr int kRounds = 2000;
  Parker here;
  Parker there;
  int value = 0;
  std::thread other([&] {
    for (int i = 0; i < kRounds; ++i) {
      there.park();
      ++value;
      here.unpark();
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    ++value;
    there.unpark();
    here.park();
  }
  other.join();
  EXPECT_EQ(value, 2 * kRounds);
}

}  // namespace
}  // namespace spindle

#include "formats/cluster/first_writes.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/seed.h"

namespace spindle {
namespace {

using Admission = FirstWrites::Admission;
using Outcome = FirstWrites::Outcome;
using Ticket = FirstWrites::Ticket;

constexpr uint64_t kCluster = 4096;

struct Fixture {
  Fixture() { cluster_size.cluster_bits = 12; }
  ClusterSize cluster_size;
  InFlight in_flight;
  FirstWrites first_writes{&cluster_size};

  Admission enter(ByteRange clusters, ByteRange data, Ticket* ticket) {
    return first_writes.enter(clusters, data, &in_flight, ticket);
  }
};

TEST(FirstWrites, ChangesThatDoNotOverlapDoNotWait) {
  Fixture f;
  Ticket a;
  Ticket b;
  EXPECT_EQ(f.enter({0, kCluster}, {0, 512}, &a), Admission::kOwner);
  EXPECT_EQ(f.enter({kCluster, kCluster}, {kCluster, 512}, &b),
            Admission::kOwner);
  Ticket c = f.first_writes.enter_alone({4 * kCluster, 2 * kCluster});
  int published = 0;
  const auto publish = [&] { ++published; };
  EXPECT_EQ(f.first_writes.finish(std::move(a), true, publish),
            Outcome::kPublished);
  EXPECT_EQ(f.first_writes.finish(std::move(b), false, publish),
            Outcome::kUnpublished);
  f.first_writes.finish(std::move(c), false, publish);
  EXPECT_EQ(published, 1);
}

TEST(FirstWrites, JoinersWriteToTheOwnersClustersAndTheFirstPublishes) {
  Fixture f;
  Ticket owner;
  ASSERT_EQ(f.enter({0, 2 * kCluster}, {0, 2 * kCluster}, &owner),
            Admission::kOwner);
  f.first_writes.let_others_join(owner, {100, 2}, false);
  Ticket joined;
  ASSERT_EQ(f.enter({kCluster, kCluster}, {kCluster + 1024, 512}, &joined),
            Admission::kJoined);
  EXPECT_EQ(joined.host().bytes, 101 * kCluster + 1024);
  EXPECT_EQ(joined.guest_clusters(), (ByteRange{0, 2 * kCluster}));
  EXPECT_EQ(joined.host_clusters(), (HostClusters{100, 2}));
  EXPECT_TRUE(f.in_flight.is_pinned(101));
  EXPECT_FALSE(f.in_flight.is_pinned(100));

  int published = 0;
  const auto publish = [&] { ++published; };
  EXPECT_EQ(f.first_writes.finish(std::move(joined), true, publish),
            Outcome::kPublished);
  EXPECT_EQ(published, 1);
  EXPECT_FALSE(f.in_flight.is_pinned(101));
  // Published: nothing holds others back any more.
  Ticket next = f.first_writes.enter_alone({0, kCluster});
  f.first_writes.finish(std::move(next), false, publish);
  EXPECT_EQ(f.first_writes.finish(std::move(owner), true, publish),
            Outcome::kPublished);
  EXPECT_EQ(published, 1);
}

TEST(FirstWrites, OnlyTheLastToFailOwnsTheClusters) {
  Fixture f;
  Ticket owner;
  ASSERT_EQ(f.enter({0, kCluster}, {0, 512}, &owner), Admission::kOwner);
  f.first_writes.let_others_join(owner, {7, 1}, false);
  Ticket joined;
  ASSERT_EQ(f.enter({0, kCluster}, {512, 512}, &joined), Admission::kJoined);
  const auto publish = [] { FAIL() << "nothing to publish"; };
  EXPECT_EQ(f.first_writes.finish(std::move(owner), false, publish),
            Outcome::kLeft);
  EXPECT_EQ(f.first_writes.finish(std::move(joined), false, publish),
            Outcome::kUnpublished);
}

TEST(FirstWrites, AJoinerPublishesForAnOwnerThatFailed) {
  Fixture f;
  Ticket owner;
  ASSERT_EQ(f.enter({0, kCluster}, {0, 512}, &owner), Admission::kOwner);
  f.first_writes.let_others_join(owner, {7, 1}, false);
  Ticket joined;
  ASSERT_EQ(f.enter({0, kCluster}, {512, 512}, &joined), Admission::kJoined);
  EXPECT_EQ(f.first_writes.finish(std::move(joined), true, [] {}),
            Outcome::kPublished);
  // The owner must drop the old entries, not free the clusters.
  EXPECT_EQ(f.first_writes.finish(std::move(owner), false, [] {}),
            Outcome::kPublished);
}

TEST(FirstWrites, DataBeyondTheOwnersClustersWaitsAndRetries) {
  Fixture f;
  Ticket owner;
  ASSERT_EQ(f.enter({0, kCluster}, {0, 512}, &owner), Admission::kOwner);
  f.first_writes.let_others_join(owner, {7, 1}, false);
  std::atomic<bool> retried{false};
  std::thread other([&] {
    Ticket ticket;
    while (true) {
      const Admission admission =
          f.enter({0, 2 * kCluster}, {512, kCluster}, &ticket);
      if (admission == Admission::kOwner) break;
      ASSERT_EQ(admission, Admission::kRetry);
      retried = true;
    }
    f.first_writes.finish(std::move(ticket), false, [] {});
  });
  f.first_writes.finish(std::move(owner), true, [] {});
  other.join();
}

TEST(FirstWrites, NarrowingLetsOthersIn) {
  Fixture f;
  Ticket owner;
  ASSERT_EQ(f.enter({0, 4 * kCluster}, {0, 4 * kCluster}, &owner),
            Admission::kOwner);
  std::thread other([&] {
    Ticket ticket = f.first_writes.enter_alone({2 * kCluster, kCluster});
    f.first_writes.finish(std::move(ticket), false, [] {});
  });
  f.first_writes.narrow(owner, {0, 2 * kCluster});
  other.join();  // without the owner's end
  f.first_writes.finish(std::move(owner), false, [] {});
}

TEST(FirstWrites, ChangesThatOverlapNeverRunTogether) {
  constexpr int kThreads = 4;
  constexpr uint64_t kClusters = 6;
  const uint64_t seed = testing::test_seed();
  Fixture f;
  std::vector<std::atomic<int>> inside(kClusters);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + static_cast<uint64_t>(t));
      for (int i = 0; i < 1500; ++i) {
        const uint64_t first = random() % kClusters;
        const uint64_t count = 1 + random() % (kClusters - first);
        const ByteRange range{first * kCluster, count * kCluster};
        Ticket ticket;
        if (random() % 2 == 0) {
          ticket = f.first_writes.enter_alone(range);
        } else {
          while (f.enter(range, range, &ticket) != Admission::kOwner) {
          }
        }
        for (uint64_t c = first; c < first + count; ++c)
          ASSERT_EQ(inside[c].fetch_add(1), 0);
        for (uint64_t c = first; c < first + count; ++c) --inside[c];
        f.first_writes.finish(std::move(ticket), random() % 2 == 0, [] {});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace spindle

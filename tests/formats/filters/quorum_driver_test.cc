// QuorumDriver over drivers in memory.  That it does what QEMU's does, the rows
// of tests/tools/rows/io_quorum.rows show.
#include "formats/filters/quorum_driver.h"

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using testing::MemoryDriver;
using testing::test_seed;

constexpr uint64_t kBytes = uint64_t{1} << 20;
constexpr uint64_t kPiece = uint64_t{256} << 10;

struct Quorum {
  explicit Quorum(size_t count, QuorumOptions options) {
    for (size_t i = 0; i < count; ++i) {
      children.push_back(std::make_shared<MemoryDriver>(
          MemoryDriver::Options{.length_bytes = kBytes}));
    }
    auto made =
        QuorumDriver::create({children.begin(), children.end()}, options);
    EXPECT_TRUE(made.ok()) << made.status();
    driver = *std::move(made);
  }
  absl::Status write(std::string text, uint64_t offset) {
    return driver->write(IoVector(text.data(), text.size()),
                         Sector::from_byte_offset(offset));
  }
  absl::StatusOr<std::string> read(uint64_t offset, size_t length) {
    std::string text(length, '?');
    const absl::Status status = driver->read(IoVector(text.data(), text.size()),
                                             Sector::from_byte_offset(offset));
    if (!status.ok()) return status;
    return text;
  }

  std::vector<std::shared_ptr<MemoryDriver>> children;
  std::shared_ptr<BlockDriver> driver;
};

TEST(QuorumDriver, ChildrenMustBeOfOneLength) {
  const auto status =
      QuorumDriver::create({std::make_shared<MemoryDriver>(
                                MemoryDriver::Options{.length_bytes = 512}),
                            std::make_shared<MemoryDriver>(
                                MemoryDriver::Options{.length_bytes = 1024})},
                           {.vote_threshold = 1})
          .status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("child 1"), std::string::npos) << status;
  EXPECT_NE(status.message().find("1024"), std::string::npos) << status;
}

// Each piece of a long read is voted on by itself: damage in different places
// of different children is outvoted everywhere.
TEST(QuorumDriver, DamageInDifferentPiecesIsOutvoted) {
  Quorum quorum(3, {.vote_threshold = 2, .rewrite_corrupted = true});
  const std::string text(3 * kPiece, 'x');
  ASSERT_TRUE(quorum.write(text, 0).ok());
  for (size_t i = 0; i < 3; ++i)
    quorum.children[i]->set_content(i * kPiece + 77, "damage");
  const auto found = quorum.read(0, 3 * kPiece);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, text);
  for (const auto& child : quorum.children)
    EXPECT_EQ(child->content({0, 3 * kPiece}), text) << "not written anew";
}

TEST(QuorumDriver, NotEnoughVotesNameTheThreshold) {
  Quorum quorum(2, {.vote_threshold = 2});
  quorum.children[0]->set_content(0, "a");
  const absl::Status status = quorum.read(0, 512).status();
  EXPECT_NE(status.message().find("vote-threshold is 2"), std::string::npos)
      << status;
}

TEST(QuorumDriver, ADifferenceOfTwoThatVerifyEachOtherSaysWhere) {
  Quorum quorum(2, {.vote_threshold = 2, .blkverify = true});
  quorum.children[1]->set_content(4096 + 9, "b");
  EXPECT_TRUE(quorum.read(0, 4096).ok());
  const absl::Status status = quorum.read(4096, 512).status();
  EXPECT_NE(status.message().find("offset 4105"), std::string::npos) << status;
}

// Has to write zeroes one by one.
class WritesZeroes : public MemoryDriver {
 public:
  using MemoryDriver::MemoryDriver;
  absl::Status write_zeroes(ByteRange, WriteZeroesFlags) override {
    return absl::UnimplementedError("not quickly");
  }
};

// A child that can't is asked to write, and not outvoted.
TEST(QuorumDriver, ZeroesThatOneChildMustWriteAreWritten) {
  const auto one = std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = kBytes});
  const auto other = std::make_shared<WritesZeroes>(
      MemoryDriver::Options{.length_bytes = kBytes});
  const auto quorum = QuorumDriver::create({one, other}, {.vote_threshold = 1});
  ASSERT_TRUE(quorum.ok()) << quorum.status();
  EXPECT_TRUE(absl::IsUnimplemented((*quorum)->write_zeroes({0, 4096}, {})));
}

// Writers that overlap, and readers: no two children see two writes in two
// orders, and no reader finds a write that only some of them have.
TEST(QuorumDriver, ChildrenStayTheSameUnderConcurrentWrites) {
  const uint64_t seed = test_seed();
  Quorum quorum(3, {.vote_threshold = 3, .rewrite_corrupted = true});
  constexpr int kThreads = 4;
  constexpr int kRounds = 400;
  constexpr uint64_t kArea = 64 << 10;
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + static_cast<uint64_t>(t));
      for (int i = 0; i < kRounds; ++i) {
        const uint64_t offset = random() % (kArea / 512) * 512;
        const size_t length = (1 + random() % 16) * 512;
        absl::Status status;
        switch (random() % 4) {
          case 0:
            status = quorum.driver->write_zeroes({offset, length}, {});
            break;
          case 1:
            status = quorum.read(offset, length).status();
            break;
          default:
            status = quorum.write(
                std::string(length, static_cast<char>(random())), offset);
        }
        if (!status.ok()) ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  const std::string first = quorum.children[0]->content();
  for (const auto& child : quorum.children)
    EXPECT_TRUE(child->content() == first);
  EXPECT_TRUE(quorum.driver->flush().ok());
  EXPECT_TRUE(quorum.driver->close().ok());
}

}  // namespace
}  // namespace spindle

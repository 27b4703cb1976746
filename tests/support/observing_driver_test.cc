#include "tests/support/observing_driver.h"

#include <errno.h>

#include <memory>
#include <string>
#include <thread>

#include "engine/byte_channel.h"
#include "engine/errors.h"
#include "engine/metadata_mutex.h"
#include "gtest/gtest-spi.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"

namespace spindle {
namespace testing {
namespace {

class ObservingDriverTest : public ::testing::Test {
 protected:
  absl::Status read(Purpose purpose, uint64_t offset = 0) {
    std::string bytes(512, '\0');
    return channel_.read(purpose, bytes.data(), bytes.size(), offset);
  }
  absl::Status write(Purpose purpose, uint64_t offset = 0) {
    const std::string bytes(512, 'w');
    return channel_.write(purpose, bytes.data(), bytes.size(), offset);
  }

  std::shared_ptr<MemoryDriver> memory_ = std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = 8192});
  std::shared_ptr<ObservingDriver> observing_ =
      std::make_shared<ObservingDriver>(memory_);
  ByteChannel channel_{observing_};
};

TEST_F(ObservingDriverTest, CountsByPurposeAndKind) {
  ASSERT_TRUE(read(Purpose::kL2Load).ok());
  ASSERT_TRUE(write(Purpose::kL2Update).ok());
  ASSERT_TRUE(write(Purpose::kL2Update).ok());
  ASSERT_TRUE(channel_.flush().ok());
  EXPECT_EQ(observing_->count(Purpose::kL2Update, AccessKind::kWrite), 2u);
  EXPECT_EQ(observing_->count(Purpose::kL2Update, AccessKind::kRead), 0u);
  EXPECT_EQ(observing_->count(Purpose::kL2Load), 1u);
  EXPECT_EQ(observing_->count(AccessKind::kFlush), 1u);
  EXPECT_EQ(observing_->total_count(), 4u);
  observing_->reset_counts();
  EXPECT_EQ(observing_->total_count(), 0u);
}

TEST_F(ObservingDriverTest, FailsTheNthAccessOnce) {
  observing_->fail_at({.purpose = Purpose::kL2Update}, ENOSPC, 2);
  EXPECT_TRUE(write(Purpose::kL1Update).ok());
  EXPECT_TRUE(write(Purpose::kL2Update).ok());
  const absl::Status failed = write(Purpose::kL2Update, 512);
  EXPECT_EQ(errno_of(failed), ENOSPC);
  EXPECT_NE(failed.message().find("l2_update"), std::string::npos);
  EXPECT_EQ(memory_->content({512, 1}), std::string(1, '\0'));
  EXPECT_TRUE(write(Purpose::kL2Update).ok());
  EXPECT_EQ(observing_->failure_count(), 1u);
}

TEST_F(ObservingDriverTest, FailsFromThenOnUntilCleared) {
  observing_->fail_at({.kind = AccessKind::kWrite}, EIO, 1,
                      ObservingDriver::Repeat::kFromThenOn);
  EXPECT_EQ(errno_of(write(Purpose::kL1Update)), EIO);
  EXPECT_EQ(errno_of(write(Purpose::kWriteAio)), EIO);
  EXPECT_TRUE(read(Purpose::kReadAio).ok());
  observing_->clear_failures();
  EXPECT_TRUE(write(Purpose::kWriteAio).ok());
}

TEST_F(ObservingDriverTest, FailsByRange) {
  observing_->fail_at({.range = ByteRange{1000, 100}}, EIO, 1,
                      ObservingDriver::Repeat::kFromThenOn);
  EXPECT_TRUE(write(Purpose::kWriteAio, 0).ok());
  EXPECT_FALSE(write(Purpose::kWriteAio, 512).ok());
  EXPECT_FALSE(write(Purpose::kWriteAio, 1024).ok());
  EXPECT_TRUE(write(Purpose::kWriteAio, 1536).ok());
}

TEST_F(ObservingDriverTest, StopsAndResumes) {
  auto stop = observing_->stop_at({.purpose = Purpose::kWriteAio});
  EXPECT_TRUE(write(Purpose::kL2Update, 512).ok());
  std::thread writer([this] { EXPECT_TRUE(write(Purpose::kWriteAio).ok()); });
  stop->wait_until_reached();
  EXPECT_EQ(memory_->content({0, 1}), std::string(1, '\0'));
  EXPECT_TRUE(write(Purpose::kWriteAio, 1024).ok());  // only the first stops
  stop->resume();
  writer.join();
  EXPECT_EQ(memory_->content({0, 1}), "w");
}

TEST_F(ObservingDriverTest, AStopThatIsDroppedHoldsNobody) {
  observing_->stop_at({.purpose = Purpose::kWriteAio}).reset();
  EXPECT_TRUE(write(Purpose::kWriteAio).ok());
}

TEST_F(ObservingDriverTest, AccessUnderAMetadataMutexIsAFailure) {
  MetadataMutex mutex(LockRank::kAllocator);
  MetadataLock lock(&mutex);
  EXPECT_NONFATAL_FAILURE(EXPECT_TRUE(read(Purpose::kRefblockLoad).ok()),
                          "refblock_load");
  EXPECT_EQ(observing_->lock_violation_count(), 1u);
}

TEST_F(ObservingDriverTest, ExceptionsFromTheLockRuleAreByPurpose) {
  observing_->allow_metadata_mutex_for({Purpose::kHeaderUpdate});
  MetadataMutex mutex(LockRank::kAllocator);
  MetadataLock lock(&mutex);
  EXPECT_TRUE(write(Purpose::kHeaderUpdate).ok());
  EXPECT_EQ(observing_->lock_violation_count(), 0u);
  EXPECT_NONFATAL_FAILURE(EXPECT_TRUE(write(Purpose::kL1Update).ok()),
                          "l1_update");
}

}  // namespace
}  // namespace testing
}  // namespace spindle

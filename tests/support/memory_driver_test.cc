#include "tests/support/memory_driver.h"

#include <errno.h>

#include <string>

#include "absl/time/clock.h"
#include "engine/byte_channel.h"
#include "engine/errors.h"
#include "gtest/gtest.h"

namespace spindle {
namespace testing {
namespace {

IoVector vector_of(std::string& bytes) {
  return IoVector(bytes.data(), bytes.size());
}

TEST(MemoryDriver, ReadsWhatWasWrittenAcrossChunks) {
  MemoryDriver driver({.length_bytes = 1 << 20});
  std::string written(130048, 'w');
  written[65536] = 'x';
  ASSERT_TRUE(driver.write(vector_of(written), Sector(127)).ok());
  std::string got(written.size(), '?');
  ASSERT_TRUE(driver.read(vector_of(got), Sector(127)).ok());
  EXPECT_EQ(got, written);
  EXPECT_EQ(driver.content({0, 512}), std::string(512, '\0'));
}

TEST(MemoryDriver, StopsAWriteAtTheEndWithinTheLastSector) {
  MemoryDriver driver({.length_bytes = 700});
  std::string written(512, 'w');
  ASSERT_TRUE(driver.write(vector_of(written), Sector(1)).ok());
  EXPECT_EQ(driver.length_bytes(), 700u);
  std::string got(512, '?');
  ASSERT_TRUE(driver.read(vector_of(got), Sector(1)).ok());
  EXPECT_EQ(got, std::string(188, 'w') + std::string(324, '\0'));
}

TEST(MemoryDriver, GrowsByAWriteBeyondTheLastSector) {
  MemoryDriver driver({.length_bytes = 700});
  std::string written(1024, 'w');
  ASSERT_TRUE(driver.write(vector_of(written), Sector(1)).ok());
  EXPECT_EQ(driver.length_bytes(), 1536u);
  EXPECT_EQ(driver.content({512, 1024}), written);
}

TEST(MemoryDriver, RefusesToGrowBeyondItsMaximum) {
  MemoryDriver driver({.length_bytes = 512, .max_length_bytes = 1024});
  std::string written(1024, 'w');
  const absl::Status status = driver.write(vector_of(written), Sector(1));
  EXPECT_EQ(errno_of(status), ENOSPC);
  EXPECT_EQ(errno_of(driver.set_length(1025, SetLengthMode::kGrowOnly)),
            ENOSPC);
  EXPECT_EQ(driver.length_bytes(), 512u);
}

TEST(MemoryDriver, ShrinkingForgets) {
  MemoryDriver driver;
  driver.set_content(0, std::string(100, 'w'));
  ASSERT_TRUE(driver.set_length(10, SetLengthMode::kExact).ok());
  ASSERT_TRUE(driver.set_length(5, SetLengthMode::kGrowOnly).ok());
  EXPECT_EQ(driver.length_bytes(), 10u);
  ASSERT_TRUE(driver.set_length(100, SetLengthMode::kGrowOnly).ok());
  EXPECT_EQ(driver.content(), std::string(10, 'w') + std::string(90, '\0'));
}

TEST(MemoryDriver, SaysWhereDataIs) {
  MemoryDriver driver({.length_bytes = 1 << 20});
  driver.set_content(65536, "data");
  auto status = driver.block_status({0, 1 << 20}, BlockStatusScope::kThisLayer);
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(status->length, 65536u);
  EXPECT_FALSE(status->data);
  EXPECT_TRUE(status->zero);
  status = driver.block_status({65536, 983040}, BlockStatusScope::kThisLayer);
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(status->length, 65536u);
  EXPECT_TRUE(status->data);
  EXPECT_EQ(status->host_offset, 65536u);
}

TEST(MemoryDriver, AnnouncesOnlyWhatItIsToldTo) {
  MemoryDriver driver({.length_bytes = 512, .capabilities = {}});
  EXPECT_TRUE(absl::IsUnimplemented(driver.discard({0, 512})));
  EXPECT_TRUE(absl::IsUnimplemented(driver.write_zeroes({0, 512}, {})));
  std::string got(512, '?');
  EXPECT_EQ(driver.try_read(vector_of(got), Sector(0)), 0u);
}

// The clock is only a lower bound here: a sleep never ends early.
TEST(MemoryDriver, SleepsInDataTransfersOnly) {
  const absl::Duration delay = absl::Milliseconds(20);
  auto driver = std::make_shared<MemoryDriver>(MemoryDriver::Options{
      .length_bytes = 4096, .data_transfer_delay = delay});
  ByteChannel channel(driver);
  std::string bytes(512, 'w');
  absl::Time start = absl::Now();
  ASSERT_TRUE(channel.write(Purpose::kWriteAio, vector_of(bytes), 0).ok());
  ASSERT_TRUE(channel.read(Purpose::kReadAio, vector_of(bytes), 0).ok());
  EXPECT_GE(absl::Now() - start, 2 * delay);
  start = absl::Now();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(channel.read(Purpose::kL2Load, vector_of(bytes), 0).ok());
  }
  EXPECT_LT(absl::Now() - start, 100 * delay);
}

}  // namespace
}  // namespace testing
}  // namespace spindle

#include "formats/qcow2/corruption.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/byte_channel.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryDriver;
using testing::ObservingDriver;

struct Fixture {
  explicit Fixture(bool read_only = false)
      : memory(std::make_shared<MemoryDriver>(MemoryDriver::Options{
            .length_bytes = 512, .read_only = read_only})),
        file(std::make_shared<ObservingDriver>(memory)),
        channel(file) {}

  Corruption make(bool header_has_bit = true) {
    return Corruption(&channel, header_has_bit, /*incompatible_features=*/0x10,
                      [this](LogSeverity, absl::string_view message) {
                        log.emplace_back(message);
                      });
  }
  std::string features() const { return memory->content({72, 8}); }

  std::shared_ptr<MemoryDriver> memory;
  std::shared_ptr<ObservingDriver> file;
  ByteChannel channel;
  std::vector<std::string> log;
};

TEST(Corruption, SetsTheBitAndKeepsTheReason) {
  Fixture fixture;
  Corruption corruption = fixture.make();
  corruption.allow_header_update();
  EXPECT_TRUE(corruption.writes_allowed().ok());
  EXPECT_FALSE(corruption.is_set());

  const absl::Status status = corruption.report("entry 3 is bad");
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_EQ(status.message(), "entry 3 is bad");
  // Beside the bits that were set already.
  EXPECT_EQ(fixture.features(), std::string("\0\0\0\0\0\0\0\x12", 8));
  EXPECT_TRUE(corruption.is_set());
  EXPECT_TRUE(absl::StrContains(corruption.writes_allowed().message(),
                                "entry 3 is bad"));
  EXPECT_EQ(fixture.log.size(), 1u);
}

TEST(Corruption, TheFirstReasonStays) {
  Fixture fixture;
  Corruption corruption = fixture.make();
  corruption.allow_header_update();
  corruption.report("first").IgnoreError();
  EXPECT_EQ(corruption.report("second").message(), "second");
  EXPECT_TRUE(
      absl::StrContains(corruption.writes_allowed().message(), "first"));
  EXPECT_EQ(fixture.file->count(Purpose::kHeaderUpdate), 1u);
}

TEST(Corruption, LeavesTheFileAloneUntilItMayBeWritten) {
  Fixture fixture;
  Corruption corruption = fixture.make();
  EXPECT_TRUE(absl::IsDataLoss(corruption.report("bad")));
  EXPECT_TRUE(corruption.is_set());
  EXPECT_EQ(fixture.features(), std::string(8, '\0'));
}

TEST(Corruption, LeavesAReadOnlyFileAlone) {
  Fixture fixture(/*read_only=*/true);
  Corruption corruption = fixture.make();
  corruption.allow_header_update();
  corruption.report("bad").IgnoreError();
  EXPECT_TRUE(corruption.is_set());
  EXPECT_EQ(fixture.file->total_count(), 0u);
}

TEST(Corruption, VersionTwoHasNoBit) {
  Fixture fixture;
  Corruption corruption = fixture.make(/*header_has_bit=*/false);
  corruption.allow_header_update();
  corruption.report("bad").IgnoreError();
  EXPECT_TRUE(corruption.is_set());
  EXPECT_EQ(fixture.file->total_count(), 0u);
}

TEST(Corruption, RefusesWritesEvenIfTheBitCannotBeSet) {
  Fixture fixture;
  Corruption corruption = fixture.make();
  corruption.allow_header_update();
  fixture.file->fail_at({.purpose = Purpose::kHeaderUpdate}, EIO);
  EXPECT_EQ(corruption.report("bad").message(), "bad");
  EXPECT_FALSE(corruption.writes_allowed().ok());
  EXPECT_EQ(fixture.log.size(), 2u);
}

}  // namespace
}  // namespace spindle::qcow2

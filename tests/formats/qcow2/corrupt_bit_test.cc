#include "formats/qcow2/corrupt_bit.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/byte_channel.h"
#include "formats/cluster/corruption.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryDriver;
using testing::ObservingDriver;

struct Fixture {
  explicit Fixture(bool header_has_bit = true, bool read_only = false)
      : memory(std::make_shared<MemoryDriver>(MemoryDriver::Options{
            .length_bytes = 512, .read_only = read_only})),
        file(std::make_shared<ObservingDriver>(memory)),
        channel(file),
        bit(&channel, header_has_bit, /*incompatible_features=*/0x10),
        corruption(
            "qcow2", [this] { return bit.set(); },
            [this](LogSeverity, absl::string_view message) {
              log.emplace_back(message);
            }) {}

  std::string features() const { return memory->content({72, 8}); }

  std::shared_ptr<MemoryDriver> memory;
  std::shared_ptr<ObservingDriver> file;
  ByteChannel channel;
  std::vector<std::string> log;
  CorruptBit bit;
  Corruption corruption;
};

TEST(CorruptBit, SetsTheBitAndKeepsTheReason) {
  Fixture fixture;
  Corruption& corruption = fixture.corruption;
  fixture.bit.allow();
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

TEST(CorruptBit, TheFirstReasonStays) {
  Fixture fixture;
  Corruption& corruption = fixture.corruption;
  fixture.bit.allow();
  corruption.report("first").IgnoreError();
  EXPECT_EQ(corruption.report("second").message(), "second");
  EXPECT_TRUE(
      absl::StrContains(corruption.writes_allowed().message(), "first"));
  EXPECT_EQ(fixture.file->count(Purpose::kHeaderUpdate), 1u);
}

TEST(CorruptBit, LeavesTheFileAloneUntilItMayBeWritten) {
  Fixture fixture;
  Corruption& corruption = fixture.corruption;
  EXPECT_TRUE(absl::IsDataLoss(corruption.report("bad")));
  EXPECT_TRUE(corruption.is_set());
  EXPECT_EQ(fixture.features(), std::string(8, '\0'));
}

TEST(CorruptBit, LeavesAReadOnlyFileAlone) {
  Fixture fixture(/*header_has_bit=*/true, /*read_only=*/true);
  Corruption& corruption = fixture.corruption;
  fixture.bit.allow();
  corruption.report("bad").IgnoreError();
  EXPECT_TRUE(corruption.is_set());
  EXPECT_EQ(fixture.file->total_count(), 0u);
}

TEST(CorruptBit, VersionTwoHasNoBit) {
  Fixture fixture(/*header_has_bit=*/false);
  Corruption& corruption = fixture.corruption;
  fixture.bit.allow();
  corruption.report("bad").IgnoreError();
  EXPECT_TRUE(corruption.is_set());
  EXPECT_EQ(fixture.file->total_count(), 0u);
}

TEST(CorruptBit, RefusesWritesEvenIfTheBitCannotBeSet) {
  Fixture fixture;
  Corruption& corruption = fixture.corruption;
  fixture.bit.allow();
  fixture.file->fail_at({.purpose = Purpose::kHeaderUpdate}, EIO);
  EXPECT_EQ(corruption.report("bad").message(), "bad");
  EXPECT_FALSE(corruption.writes_allowed().ok());
  EXPECT_EQ(fixture.log.size(), 2u);
}

}  // namespace
}  // namespace spindle::qcow2

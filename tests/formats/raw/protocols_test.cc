#include "formats/raw/protocols.h"

#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"

namespace spindle {
namespace {

using testing::ScratchFile;

TEST(Protocols, ClaimTheirOwn) {
  const ScratchFile scratch;
  scratch.write({});
  EXPECT_EQ(file_protocol()->name(), "file");
  EXPECT_EQ(host_device_protocol()->name(), "host_device");
  EXPECT_TRUE(file_protocol()->claims(scratch.path()));
  EXPECT_FALSE(file_protocol()->claims(""));
  EXPECT_FALSE(host_device_protocol()->claims(scratch.path()));
  EXPECT_FALSE(host_device_protocol()->claims("/dev/null"));
  EXPECT_FALSE(host_device_protocol()->claims("/nonexistent"));
}

TEST(Protocols, FileCreatesAndOpens) {
  const ScratchFile scratch;
  ASSERT_TRUE(file_protocol()->create(scratch.path(), 1000, {}, nullptr).ok());
  const auto driver = file_protocol()->open(scratch.path(), {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->length_bytes(), 1000u);
  EXPECT_TRUE(absl::IsInvalidArgument(
      file_protocol()->create(scratch.path(), 0, {{"foo", "1"}}, nullptr)));
  EXPECT_EQ(file_protocol()->create_options().size(), 3u);
}

TEST(Protocols, AHostDeviceIsNotCreatedFromAFile) {
  const ScratchFile scratch;
  scratch.write({});
  EXPECT_TRUE(absl::IsInvalidArgument(
      host_device_protocol()->create(scratch.path(), 512, {}, nullptr)));
}

}  // namespace
}  // namespace spindle

#include "formats/raw/raw_probe_guard.h"

#include <errno.h>

#include <cstring>
#include <memory>
#include <vector>

#include "engine/errors.h"
#include "formats/raw/file_driver.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"

namespace spindle {
namespace {

using testing::AlignedMemory;
using testing::pattern;
using testing::ScratchFile;

// A format whose images begin with "MAGIC".
class MagicFormat final : public ImageFormat {
 public:
  absl::string_view name() const override { return "magic"; }
  int probe(absl::Span<const uint8_t> head, absl::string_view) const override {
    return head.size() >= 5 && std::memcmp(head.data(), "MAGIC", 5) == 0 ? 100
                                                                         : 0;
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver>, const OpenOptions&,
      const OpenContext&) const override {
    return absl::UnimplementedError("a name only");
  }
  absl::Status create(std::shared_ptr<BlockDriver>, const CreateOptions&,
                      const OpenContext&) const override {
    return absl::UnimplementedError("a name only");
  }
  std::vector<OptionHelp> create_options() const override { return {}; }
  uint64_t initial_file_length(const CreateOptions&) const override {
    return 0;
  }
};

class RawProbeGuardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    scratch_.write(pattern(8192, 1));
    file_ = *FileDriver::open(scratch_.path(), {});
    guard_ = std::make_shared<RawProbeGuard>(
        file_, std::vector<const ImageFormat*>{&format_});
  }
  static std::vector<uint8_t> with_magic(size_t length, size_t at) {
    std::vector<uint8_t> bytes = pattern(length, 2);
    std::memcpy(bytes.data() + at, "MAGIC", 5);
    return bytes;
  }

  const MagicFormat format_;
  ScratchFile scratch_;
  std::shared_ptr<FileDriver> file_;
  std::shared_ptr<RawProbeGuard> guard_;
};

TEST_F(RawProbeGuardTest, RefusesAFirstSectorOfAnotherFormat) {
  for (const size_t length : {512u, 4096u}) {
    const absl::Status status =
        guard_->write(AlignedMemory(with_magic(length, 0)).qiov(), Sector(0));
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
    EXPECT_EQ(errno_of(status), EPERM);
    EXPECT_NE(status.message().find("magic"), absl::string_view::npos);
  }
  EXPECT_EQ(scratch_.content(), pattern(8192, 1));
}

TEST_F(RawProbeGuardTest, SeesAHeaderThatIsScatteredInMemory) {
  const AlignedMemory data(with_magic(512, 0));
  const IoVector scattered(
      {{data.data(), 2}, {data.data() + 2, 1}, {data.data() + 3, 509}});
  EXPECT_TRUE(absl::IsPermissionDenied(guard_->write(scattered, Sector(0))));
}

TEST_F(RawProbeGuardTest, DoesNotTryWritesToTheFirstSector) {
  EXPECT_EQ(
      guard_->try_write(AlignedMemory(with_magic(512, 0)).qiov(), Sector(0)),
      0u);
  EXPECT_EQ(scratch_.content(), pattern(8192, 1));
}

TEST_F(RawProbeGuardTest, AllowsEveryOtherWrite) {
  EXPECT_TRUE(
      guard_->write(AlignedMemory(with_magic(512, 0)).qiov(), Sector(1)).ok());
  EXPECT_TRUE(
      guard_->write(AlignedMemory(with_magic(512, 1)).qiov(), Sector(0)).ok());
  EXPECT_TRUE(
      guard_->write(AlignedMemory(with_magic(1024, 512)).qiov(), Sector(0))
          .ok());
  EXPECT_TRUE(guard_->write(AlignedMemory(512).qiov(), Sector(0)).ok());
}

TEST_F(RawProbeGuardTest, IsOtherwiseTheFile) {
  EXPECT_EQ(guard_->length_bytes(), 8192u);
  EXPECT_EQ(guard_->identity(), file_->identity());
  EXPECT_EQ(guard_->filename(), scratch_.path());
  EXPECT_EQ(guard_->info().format, "raw");
  EXPECT_EQ(guard_->capabilities().has(Capability::kTryRead),
            file_->capabilities().has(Capability::kTryRead));
  const AlignedMemory memory(8192);
  ASSERT_TRUE(guard_->read(memory.qiov(), Sector(0)).ok());
  EXPECT_EQ(memory.bytes(), pattern(8192, 1));
  ASSERT_TRUE(guard_->set_length(10000, SetLengthMode::kGrowOnly).ok());
  EXPECT_EQ(scratch_.length(), 10000u);
  ASSERT_TRUE(guard_->reopen({.read_only = true}).ok());
  EXPECT_TRUE(guard_->read_only());
  EXPECT_TRUE(guard_->close().ok());
}

}  // namespace
}  // namespace spindle

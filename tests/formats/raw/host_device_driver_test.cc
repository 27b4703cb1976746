#include "formats/raw/host_device_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "formats/raw/owned_fd.h"
#include "formats/raw/protocols.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"

namespace spindle {
namespace {

using testing::flipped;

using testing::AlignedMemory;
using testing::locked_bytes;
using testing::pattern;
using testing::ScratchFile;

// A block device over a file; the kernel detaches it with its last user.
class LoopDevice {
 public:
  // Nothing where there are no loop devices for us.
  static std::unique_ptr<LoopDevice> attach(const std::string& backing_path,
                                            uint32_t block_bytes) {
    const OwnedFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const OwnedFd backing(::open(backing_path.c_str(), O_RDWR | O_CLOEXEC));
    if (!control.valid() || !backing.valid()) return nullptr;
    for (int attempt = 0; attempt < 20; ++attempt) {
      const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) return nullptr;
      auto device = std::make_unique<LoopDevice>();
      device->path_ = absl::StrCat("/dev/loop", number);
      device->fd_ = OwnedFd(::open(device->path_.c_str(), O_RDWR | O_CLOEXEC));
      if (!device->fd_.valid()) return nullptr;
      struct loop_config config = {};
      config.fd = static_cast<uint32_t>(backing.get());
      config.block_size = block_bytes;
      config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
      if (::ioctl(device->fd_.get(), LOOP_CONFIGURE, &config) == 0)
        return device;
      if (errno != EBUSY) return nullptr;  // somebody else took it
    }
    return nullptr;
  }

  const std::string& path() const { return path_; }
  void take_new_size() const {
    EXPECT_EQ(::ioctl(fd_.get(), LOOP_SET_CAPACITY), 0);
  }

 private:
  std::string path_;
  OwnedFd fd_;
};

// By logical block size.
class HostDevice : public ::testing::TestWithParam<uint32_t> {
 protected:
  static constexpr uint64_t kLength = uint64_t{4} << 20;

  void SetUp() override {
    backing_.write(pattern(kLength, 1));
    loop_ = LoopDevice::attach(backing_.path(), GetParam());
    if (loop_ == nullptr) GTEST_SKIP() << "no loop device: needs root";
  }

  std::shared_ptr<HostDeviceDriver> open(const OpenOptions& options = {}) {
    auto driver = HostDeviceDriver::open(loop_->path(), options);
    EXPECT_TRUE(driver.ok()) << driver.status();
    return driver.ok() ? *driver : nullptr;
  }

  std::vector<uint8_t> read(BlockDriver& driver, ByteRange range) {
    const AlignedMemory memory(range.length, 0xee);
    const absl::Status status =
        driver.read(memory.qiov(), Sector::from_byte_offset(range.offset));
    EXPECT_TRUE(status.ok()) << status;
    return memory.bytes();
  }

  ScratchFile backing_;
  std::unique_ptr<LoopDevice> loop_;
};

INSTANTIATE_TEST_SUITE_P(BlockSizes, HostDevice, ::testing::Values(512, 4096));

TEST_P(HostDevice, HasTheDevicesLengthAndBlocks) {
  EXPECT_TRUE(host_device_protocol()->claims(loop_->path()));
  const auto driver = open(flipped({&OpenOptions::read_only}));
  EXPECT_EQ(driver->length_bytes(), kLength);
  EXPECT_EQ(driver->limits().discard_alignment_bytes, GetParam());
  EXPECT_EQ(driver->limits().request_alignment_bytes, 512u);
  EXPECT_FALSE(driver->limits().writes_take_turns);
  EXPECT_EQ(read(*driver, {0, kLength}), pattern(kLength, 1));
  EXPECT_EQ(read(*driver, {512, 512}), read(*driver, {512, 512}));
  EXPECT_FALSE(driver->capabilities().has(Capability::kGrows));
}

TEST_P(HostDevice, DirectTransfersAskForTheLogicalBlock) {
  auto driver =
      HostDeviceDriver::open(loop_->path(), flipped({&OpenOptions::direct}));
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->limits().request_alignment_bytes, GetParam());
  const std::vector<uint8_t> data = pattern(8192, 2);
  ASSERT_TRUE((*driver)->write(AlignedMemory(data).qiov(), Sector(16)).ok());
  EXPECT_EQ(read(**driver, {8192, 8192}), data);
}

TEST_P(HostDevice, WritesReachTheDevice) {
  const std::vector<uint8_t> data = pattern(12288, 3);
  {
    const auto driver = open();
    ASSERT_TRUE(driver->write(AlignedMemory(data).qiov(), Sector(9)).ok());
    ASSERT_TRUE(driver->flush().ok());
    ASSERT_TRUE(driver->close().ok());
  }
  const std::vector<uint8_t> content = backing_.content();
  EXPECT_TRUE(std::equal(data.begin(), data.end(),
                         content.begin() + ptrdiff_t{9} * 512));
}

TEST_P(HostDevice, CannotGrow) {
  const auto driver = open();
  const absl::Status write = driver->write(AlignedMemory(4096, 1).qiov(),
                                           Sector::from_byte_offset(kLength));
  EXPECT_EQ(errno_of(write), ENOSPC) << write;
  for (const SetLengthMode mode :
       {SetLengthMode::kExact, SetLengthMode::kGrowOnly}) {
    const absl::Status status = driver->set_length(kLength + 1, mode);
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_EQ(errno_of(status), ENOSPC);
    EXPECT_TRUE(driver->set_length(kLength, mode).ok());
  }
  EXPECT_TRUE(driver->set_length(512, SetLengthMode::kGrowOnly).ok());
  EXPECT_TRUE(
      absl::IsUnimplemented(driver->set_length(512, SetLengthMode::kExact)));
}

TEST_P(HostDevice, NoticesThatTheDeviceHasGrown) {
  const auto driver = open();
  ASSERT_EQ(::truncate(backing_.path().c_str(), 2 * kLength), 0);
  loop_->take_new_size();
  EXPECT_TRUE(driver->set_length(2 * kLength, SetLengthMode::kGrowOnly).ok());
  EXPECT_EQ(driver->length_bytes(), 2 * kLength);
  EXPECT_EQ(read(*driver, {kLength, 4096}), std::vector<uint8_t>(4096));
}

TEST_P(HostDevice, AReadBeyondAShrunkenDeviceIsAnError) {
  const auto driver = open(flipped({&OpenOptions::read_only}));
  ASSERT_EQ(::truncate(backing_.path().c_str(), kLength / 2), 0);
  loop_->take_new_size();
  const absl::Status status = driver->read(
      AlignedMemory(4096).qiov(), Sector::from_byte_offset(kLength - 4096));
  EXPECT_EQ(errno_of(status), EIO) << status;
}

TEST_P(HostDevice, WriteZeroesZeroesExactlyTheRange) {
  std::vector<uint8_t> expected = pattern(kLength, 1);
  const auto driver = open();
  for (const bool may_unmap : {false, true}) {
    const ByteRange range{may_unmap ? 1u << 20 : 8192u, 65536};
    ASSERT_TRUE(driver->write_zeroes(range, {.may_unmap = may_unmap}).ok());
    std::fill_n(expected.begin() + static_cast<ptrdiff_t>(range.offset),
                range.length, 0);
  }
  EXPECT_EQ(read(*driver, {0, kLength}), expected);
  const absl::Status fast =
      driver->write_zeroes({0, 4096}, {.no_fallback = true});
  EXPECT_TRUE(absl::IsUnimplemented(fast)) << fast;
  if (GetParam() > 512) {
    EXPECT_TRUE(absl::IsUnimplemented(driver->write_zeroes({512, 512}, {})));
  }
  EXPECT_EQ(errno_of(driver->write_zeroes({kLength, 4096}, {})), ENOSPC);
}

TEST_P(HostDevice, DiscardReachesTheDevice) {
  const auto driver = open();
  const uint64_t before = backing_.allocated_bytes();
  const absl::Status status = driver->discard({65536 + 100, 1 << 20});
  if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_LT(backing_.allocated_bytes(), before);
  std::vector<uint8_t> around = read(*driver, {65536, 512});
  const std::vector<uint8_t> original = pattern(kLength, 1);
  EXPECT_TRUE(
      std::equal(around.begin(), around.end(), original.begin() + 65536))
      << "a block that is only partly in the range was discarded";
}

TEST_P(HostDevice, IsAllData) {
  const auto driver = open(flipped({&OpenOptions::read_only}));
  const auto status =
      driver->block_status({4096, 8192}, BlockStatusScope::kThisLayer);
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->data && status->allocated && !status->zero);
  EXPECT_EQ(status->length, 8192u);
  EXPECT_EQ(status->host_offset, 4096u);
  EXPECT_FALSE(status->end_of_image);
}

TEST_P(HostDevice, IdentityIsTheDevicesAndLocksAreTaken) {
  const auto driver = open();
  EXPECT_FALSE(HostDeviceDriver::open(loop_->path(), {}).ok());
  EXPECT_EQ(locked_bytes(loop_->path()).size(), 5u);
  ASSERT_TRUE(driver->reopen({.read_only = true}).ok());
  const auto other = open(flipped({&OpenOptions::read_only}));
  ASSERT_NE(other, nullptr);
  EXPECT_EQ(driver->identity(), other->identity());
}

TEST_P(HostDevice, CreateChecksTheSize) {
  const StorageProtocol& protocol = *host_device_protocol();
  EXPECT_TRUE(protocol.create(loop_->path(), kLength, {}, nullptr).ok());
  EXPECT_EQ(
      errno_of(protocol.create(loop_->path(), kLength + 512, {}, nullptr)),
      ENOSPC);
  EXPECT_TRUE(absl::IsInvalidArgument(protocol.create(
      loop_->path(), 512, {{"preallocation", "full"}}, nullptr)));
}

}  // namespace
}  // namespace spindle

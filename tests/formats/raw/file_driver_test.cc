#include "formats/raw/file_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/errors.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"
#include "tests/formats/raw/syscall_hooks.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using testing::flipped;

using testing::AlignedMemory;
using testing::pattern;
using testing::ScopedSyscallHooks;
using testing::ScratchFile;
using testing::SyscallHooks;

std::shared_ptr<FileDriver> open_driver(const ScratchFile& scratch,
                                        const OpenOptions& options = {}) {
  auto driver = FileDriver::open(scratch.path(), options);
  EXPECT_TRUE(driver.ok()) << driver.status();
  return driver.ok() ? *driver : nullptr;
}

std::vector<uint8_t> read_sectors(BlockDriver& driver, uint64_t sector,
                                  uint64_t sectors) {
  const AlignedMemory memory(sectors * 512, 0xee);
  const absl::Status status = driver.read(memory.qiov(), Sector(sector));
  EXPECT_TRUE(status.ok()) << status;
  return memory.bytes();
}

std::vector<uint8_t> zero_padded(std::vector<uint8_t> bytes, size_t length) {
  bytes.resize(length, 0);
  return bytes;
}

// Where file systems differ, each test runs on each.
class FileDriverTest : public ::testing::TestWithParam<ScratchFile::Place> {
 protected:
  void SetUp() override {
    if (GetParam() == ScratchFile::Place::kMemory &&
        !testing::has_memory_place()) {
      GTEST_SKIP() << "/dev/shm is not a tmpfs";
    }
  }
  ScratchFile scratch_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(
    Places, FileDriverTest,
    ::testing::Values(ScratchFile::Place::kTestFolder,
                      ScratchFile::Place::kMemory),
    [](const ::testing::TestParamInfo<ScratchFile::Place>& info) {
      return info.param == ScratchFile::Place::kMemory ? "Memory" : "Folder";
    });

TEST_P(FileDriverTest, ReadsWhatTheFileHolds) {
  const std::vector<uint8_t> content = pattern(65536, 1);
  scratch_.write(content);
  const auto driver = open_driver(scratch_, flipped({&OpenOptions::read_only}));
  EXPECT_EQ(driver->length_bytes(), 65536u);
  EXPECT_EQ(read_sectors(*driver, 0, 128), content);
  EXPECT_EQ(
      read_sectors(*driver, 3, 1),
      (std::vector<uint8_t>(content.begin() + 1536, content.begin() + 2048)));
  EXPECT_EQ(driver->format_name(), "raw");
  EXPECT_EQ(driver->filename(), scratch_.path());
}

TEST_P(FileDriverTest, TheLastPartialSectorReadsZeroesBeyondTheEnd) {
  for (const size_t length : {1u, 511u, 513u, 1000u, 5000u}) {
    const std::vector<uint8_t> content = pattern(length, 2);
    scratch_.write(content);
    const auto driver =
        open_driver(scratch_, flipped({&OpenOptions::read_only}));
    const uint64_t sectors = (length + 511) / 512;
    EXPECT_EQ(driver->length_bytes(), length);
    EXPECT_EQ(read_sectors(*driver, 0, sectors),
              zero_padded(content, sectors * 512));
  }
}

TEST_P(FileDriverTest, AWriteToTheLastPartialSectorStopsAtTheEnd) {
  for (const size_t length : {1u, 700u, 1000u, 4097u}) {
    scratch_.write(std::vector<uint8_t>(length));
    const auto driver = open_driver(scratch_);
    const uint64_t sectors = (length + 511) / 512;
    const std::vector<uint8_t> data = pattern(sectors * 512, 3);
    ASSERT_TRUE(driver->write(AlignedMemory(data).qiov(), Sector(0)).ok());
    EXPECT_EQ(driver->length_bytes(), length);
    EXPECT_EQ(scratch_.content(),
              (std::vector<uint8_t>(data.begin(), data.begin() + length)));
  }
}

TEST_P(FileDriverTest, AWriteBeyondTheLastSectorMakesTheFileLonger) {
  scratch_.write(pattern(1000, 4));
  const auto driver = open_driver(scratch_);
  EXPECT_TRUE(driver->capabilities().has(Capability::kGrows));
  const std::vector<uint8_t> data = pattern(1024, 5);
  ASSERT_TRUE(driver->write(AlignedMemory(data).qiov(), Sector(10)).ok());
  EXPECT_EQ(driver->length_bytes(), 6144u);
  std::vector<uint8_t> expected = zero_padded(pattern(1000, 4), 5120);
  expected.insert(expected.end(), data.begin(), data.end());
  EXPECT_EQ(scratch_.content(), expected);
}

TEST_P(FileDriverTest, AFailedGrowthLearnsWhatWasWritten) {
  scratch_.write(std::vector<uint8_t>(512));
  const auto driver = open_driver(scratch_);
  SyscallHooks hooks;
  int calls = 0;
  hooks.write = [&](int fd, const iovec* segments, int,
                    off_t offset) -> ssize_t {
    if (++calls > 1) {
      errno = ENOSPC;
      return -1;
    }
    iovec one = segments[0];
    one.iov_len = 1000;
    return testing::real_pwritev(fd, &one, 1, offset);
  };
  const ScopedSyscallHooks scope(&hooks);
  const absl::Status status =
      driver->write(AlignedMemory(4096, 7).qiov(), Sector(1));
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(errno_of(status), ENOSPC);
  EXPECT_EQ(driver->length_bytes(), 1512u);
}

TEST_P(FileDriverTest, SetLengthExactIsExact) {
  scratch_.write(pattern(2000, 6));
  const auto driver = open_driver(scratch_);
  for (const uint64_t length : {777u, 123457u, 0u, 512u}) {
    ASSERT_TRUE(driver->set_length(length, SetLengthMode::kExact).ok());
    EXPECT_EQ(driver->length_bytes(), length);
    EXPECT_EQ(scratch_.length(), length);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(
      driver->set_length(uint64_t{1} << 63, SetLengthMode::kExact)));
}

TEST_P(FileDriverTest, GrowOnlyNeverShrinks) {
  scratch_.write(pattern(2000, 7));
  const auto driver = open_driver(scratch_);
  ASSERT_TRUE(driver->set_length(100, SetLengthMode::kGrowOnly).ok());
  EXPECT_EQ(scratch_.length(), 2000u);
  ASSERT_TRUE(driver->set_length(300001, SetLengthMode::kGrowOnly).ok());
  EXPECT_EQ(scratch_.length(), 300001u);
  EXPECT_EQ(driver->length_bytes(), 300001u);
  EXPECT_EQ(scratch_.content(), zero_padded(pattern(2000, 7), 300001));
}

// Growing and extending writes in parallel: whatever a write added stays.
void grow_beside_writes(FileDriver* driver, const ScratchFile& scratch) {
  constexpr uint64_t kWrites = 400;
  constexpr uint64_t kBytes = 4096;
  std::atomic<uint64_t> growths{0};
  std::thread writer([&] {
    const AlignedMemory data(kBytes, 0xab);
    for (uint64_t i = 0; i < kWrites; ++i) {
      // Neither of the two may be done before the other has begun.
      while (growths.load() < i) std::this_thread::yield();
      ASSERT_TRUE(
          driver->write(data.qiov(), Sector::from_byte_offset(i * kBytes))
              .ok());
    }
  });
  // Always a little behind or ahead of the writer; by whole sectors, because a
  // write that ends in a partial last sector is meant to stop there.
  while (driver->length_bytes() < kWrites * kBytes) {
    ASSERT_TRUE(
        driver
            ->set_length(driver->length_bytes() + 512, SetLengthMode::kGrowOnly)
            .ok());
    growths.fetch_add(1);
  }
  growths.store(kWrites);
  writer.join();
  const std::vector<uint8_t> content = scratch.content();
  ASSERT_GE(content.size(), kWrites * kBytes);
  EXPECT_EQ(std::count(content.begin(), content.end(), 0xab),
            static_cast<ptrdiff_t>(kWrites * kBytes));
  EXPECT_EQ(driver->length_bytes(), content.size());
}

TEST_P(FileDriverTest, GrowingNeverCutsOffAConcurrentWrite) {
  scratch_.write({});
  grow_beside_writes(open_driver(scratch_).get(), scratch_);
}

TEST_P(FileDriverTest, NorDoesItWithoutFallocate) {
  scratch_.write({});
  std::atomic<int> calls{0};
  SyscallHooks hooks;
  hooks.fallocate = [&](int, int, off_t, off_t) {
    calls.fetch_add(1);
    errno = EOPNOTSUPP;
    return -1;
  };
  const ScopedSyscallHooks scope(&hooks);
  const auto driver = open_driver(scratch_);
  ASSERT_TRUE(driver->set_length(512, SetLengthMode::kGrowOnly).ok());
  grow_beside_writes(driver.get(), scratch_);
  EXPECT_EQ(calls.load(), 1) << "the driver does not remember";
}

// The same without chance: a grower that meets a write in its system call.
TEST_P(FileDriverTest, GrowingDoesNotTruncateWhileAWriteMakesTheFileLonger) {
  for (const bool has_fallocate : {true, false}) {
    scratch_.write(std::vector<uint8_t>(4096));
    const auto driver = open_driver(scratch_);
    std::atomic<bool> in_write{false};
    std::atomic<int> truncations{0};
    SyscallHooks hooks;
    hooks.fallocate = [&](int fd, int mode, off_t offset, off_t length) {
      errno = EOPNOTSUPP;
      return has_fallocate ? testing::real_fallocate(fd, mode, offset, length)
                           : -1;
    };
    hooks.write = [&](int fd, const iovec* segments, int count, off_t offset) {
      in_write.store(true);
      // Room for a grower that does not wait for us to show itself.
      for (int i = 0; i < 10000 && truncations.load() == 0; ++i)
        std::this_thread::yield();
      const ssize_t done = testing::real_pwritev(fd, segments, count, offset);
      in_write.store(false);
      return done;
    };
    hooks.ftruncate = [&](int fd, off_t length) {
      EXPECT_FALSE(in_write.load());
      truncations.fetch_add(1);
      return testing::real_ftruncate(fd, length);
    };
    const ScopedSyscallHooks scope(&hooks);
    const std::vector<uint8_t> data = pattern(8192, 22);
    std::thread writer([&] {
      EXPECT_TRUE(driver->write(AlignedMemory(data).qiov(), Sector(8)).ok());
    });
    while (!in_write.load() && driver->length_bytes() == 4096)
      std::this_thread::yield();
    EXPECT_TRUE(driver->set_length(8192, SetLengthMode::kGrowOnly).ok());
    writer.join();
    EXPECT_EQ(truncations.load(), 0);
    EXPECT_EQ(driver->length_bytes(), 12288u);
    EXPECT_EQ(read_sectors(*driver, 8, 16), data);
    EXPECT_EQ(scratch_.length(), 12288u);
  }
}

TEST_P(FileDriverTest, DiscardPunchesAHole) {
  scratch_.write(pattern(1 << 20, 8));
  const auto driver = open_driver(scratch_);
  const uint64_t before = scratch_.allocated_bytes();
  const absl::Status status = driver->discard({65536, 131072});
  if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(before - scratch_.allocated_bytes(), 131072u);
  EXPECT_EQ(scratch_.length(), uint64_t{1} << 20);
  // A discard may reach beyond the end of the image.
  EXPECT_TRUE(driver->discard({1 << 20, 512}).ok());
  EXPECT_TRUE(driver->discard({(1 << 20) - 512, 4096}).ok());
  EXPECT_EQ(scratch_.length(), uint64_t{1} << 20);
}

TEST_P(FileDriverTest, DiscardThatIsNotPassedDownDoesNothing) {
  const std::vector<uint8_t> content = pattern(65536, 9);
  scratch_.write(content);
  const auto driver =
      open_driver(scratch_, flipped({&OpenOptions::pass_discard_through}));
  ASSERT_TRUE(driver->discard({0, 65536}).ok());
  EXPECT_EQ(scratch_.content(), content);
  const uint64_t before = scratch_.allocated_bytes();
  const absl::Status status =
      driver->write_zeroes({0, 65536}, {.may_unmap = true});
  ASSERT_TRUE(status.ok() || absl::IsUnimplemented(status)) << status;
  EXPECT_EQ(scratch_.allocated_bytes(), before);
}

TEST_P(FileDriverTest, UnsupportedOperationsAreRemembered) {
  scratch_.write(pattern(65536, 10));
  const auto driver = open_driver(scratch_);
  std::vector<int> modes;
  SyscallHooks hooks;
  hooks.fallocate = [&](int, int mode, off_t, off_t) {
    modes.push_back(mode);
    errno = EOPNOTSUPP;
    return -1;
  };
  const ScopedSyscallHooks scope(&hooks);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(absl::IsUnimplemented(driver->discard({0, 512})));
    EXPECT_TRUE(absl::IsUnimplemented(
        driver->write_zeroes({0, 512}, {.may_unmap = true})));
    EXPECT_TRUE(absl::IsUnimplemented(driver->write_zeroes({0, 512}, {})));
  }
  EXPECT_EQ(modes.size(), 2u) << "punching a hole and zeroing, once each";
  EXPECT_EQ(scratch_.content(), pattern(65536, 10));
}

TEST_P(FileDriverTest, OtherErrorsOfFallocateAreErrors) {
  scratch_.write(pattern(65536, 11));
  const auto driver = open_driver(scratch_);
  SyscallHooks hooks;
  hooks.fallocate = [&](int, int, off_t, off_t) {
    errno = EIO;
    return -1;
  };
  const ScopedSyscallHooks scope(&hooks);
  EXPECT_EQ(errno_of(driver->discard({0, 512})), EIO);
  EXPECT_EQ(errno_of(driver->write_zeroes({0, 512}, {})), EIO);
}

TEST_P(FileDriverTest, WriteZeroesZeroesExactlyTheRange) {
  for (const bool may_unmap : {false, true}) {
    std::vector<uint8_t> expected = pattern(100000, 12);
    scratch_.write(expected);
    const auto driver = open_driver(scratch_);
    const uint64_t before = scratch_.allocated_bytes();
    const absl::Status status =
        driver->write_zeroes({1024, 50176}, {.may_unmap = may_unmap});
    if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
    ASSERT_TRUE(status.ok()) << status;
    std::fill_n(expected.begin() + 1024, 50176, 0);
    EXPECT_EQ(scratch_.content(), expected);
    EXPECT_EQ(scratch_.allocated_bytes() < before, may_unmap);
  }
}

TEST_P(FileDriverTest, WriteZeroesAtTheEndClipsOrGrows) {
  scratch_.write(pattern(1000, 13));
  const auto driver = open_driver(scratch_);
  const absl::Status status = driver->write_zeroes({512, 512}, {});
  if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(scratch_.length(), 1000u);
  ASSERT_TRUE(driver->write_zeroes({512, 9000}, {}).ok());
  EXPECT_EQ(driver->length_bytes(), 9512u);
  std::vector<uint8_t> expected = pattern(1000, 13);
  expected.resize(512);
  EXPECT_EQ(scratch_.content(), zero_padded(expected, 9512));
}

TEST_P(FileDriverTest, BlockStatusTellsDataFromHoles) {
  scratch_.write({});
  const auto driver = open_driver(scratch_);
  ASSERT_TRUE(driver->set_length(1 << 20, SetLengthMode::kExact).ok());
  ASSERT_TRUE(driver
                  ->write(AlignedMemory(pattern(65536, 14)).qiov(),
                          Sector::from_byte_offset(131072))
                  .ok());
  const auto status_at = [&](uint64_t offset, uint64_t length) {
    const auto status =
        driver->block_status({offset, length}, BlockStatusScope::kWholeChain);
    EXPECT_TRUE(status.ok()) << status.status();
    return *status;
  };
  const BlockStatus hole = status_at(0, 1 << 20);
  EXPECT_TRUE(hole.zero && !hole.data && hole.allocated);
  EXPECT_EQ(hole.length, 131072u);
  EXPECT_EQ(hole.host_offset, 0u);
  EXPECT_FALSE(hole.end_of_image);
  const BlockStatus data = status_at(131072 + 512, 1 << 19);
  EXPECT_TRUE(data.data && !data.zero);
  EXPECT_EQ(data.length, 65536u - 512);
  EXPECT_EQ(data.host_offset, 131072u + 512);
  const BlockStatus tail = status_at(196608, (1 << 20) - 196608);
  EXPECT_TRUE(tail.zero);
  EXPECT_EQ(tail.length, (1u << 20) - 196608);
  EXPECT_TRUE(tail.end_of_image);
  EXPECT_EQ(status_at(131072, 700).length, 700u);
  EXPECT_EQ(status_at(100, 700).length, 700u);
}

// What try_read does not read, read() does.
TEST_P(FileDriverTest, TryReadReadsWhatIsCached) {
  const std::vector<uint8_t> content = pattern(65536 + 100, 15);
  scratch_.write(content);
  const auto driver = open_driver(scratch_, flipped({&OpenOptions::read_only}));
  ASSERT_TRUE(driver->capabilities().has(Capability::kTryRead));
  read_sectors(*driver, 0, 128);  // now it is cached
  const AlignedMemory memory(65536, 0xee);
  const uint64_t got = driver->try_read(memory.qiov(), Sector(0));
  if (got == 0) GTEST_SKIP() << "the file system does not know RWF_NOWAIT";
  EXPECT_EQ(got, 65536u);
  EXPECT_TRUE(
      std::equal(content.begin(), content.begin() + 65536, memory.data()));
  const AlignedMemory last(1024, 0xee);
  const uint64_t at_end = driver->try_read(last.qiov(), Sector(127));
  EXPECT_EQ(at_end % 512, 0u);
  EXPECT_GE(at_end, 512u);
}

TEST_P(FileDriverTest, TryWriteIsOfferedWhereNothingBlocks) {
  scratch_.write(std::vector<uint8_t>(4096));
  const auto driver = open_driver(scratch_);
  const bool in_memory = GetParam() == ScratchFile::Place::kMemory;
  EXPECT_EQ(driver->capabilities().has(Capability::kTryWrite), in_memory);
  const std::vector<uint8_t> data = pattern(1024, 16);
  const AlignedMemory memory(data);
  EXPECT_EQ(driver->try_write(memory.qiov(), Sector(2)), in_memory ? 1024 : 0);
  EXPECT_EQ(driver->try_write(memory.qiov(), Sector(7)), 0u);  // would grow
  EXPECT_EQ(scratch_.length(), 4096u);
  if (in_memory) {
    EXPECT_EQ(read_sectors(*driver, 2, 2), data);
  }
}

TEST(FileDriver, TryReadTakesWholeSectorsOfAShortResult) {
  const ScratchFile scratch;
  scratch.write(pattern(8192, 17));
  const auto driver = open_driver(scratch, flipped({&OpenOptions::read_only}));
  SyscallHooks hooks;
  int result = 1300;
  int error_number = 0;
  int calls = 0;
  hooks.read_without_wait = [&](int, const iovec*, int, off_t) -> ssize_t {
    ++calls;
    errno = error_number;
    return result;
  };
  const ScopedSyscallHooks scope(&hooks);
  const AlignedMemory memory(4096);
  EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 1024u);
  result = -1;
  error_number = EAGAIN;
  EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 0u);
  EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 0u);
  EXPECT_EQ(calls, 3);
  error_number = EOPNOTSUPP;
  EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 0u);
  EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 0u);
  EXPECT_EQ(calls, 4) << "the driver does not remember EOPNOTSUPP";
}

TEST(FileDriver, ReadErrorsKeepTheirErrnoAndPlace) {
  const ScratchFile scratch;
  scratch.write(pattern(8192, 18));
  const auto driver = open_driver(scratch, flipped({&OpenOptions::read_only}));
  SyscallHooks hooks;
  hooks.read = [](int, const iovec*, int, off_t) -> ssize_t {
    errno = EIO;
    return -1;
  };
  const ScopedSyscallHooks scope(&hooks);
  const absl::Status status =
      driver->read(AlignedMemory(512).qiov(), Sector(3));
  EXPECT_EQ(errno_of(status), EIO);
  EXPECT_NE(status.message().find("1536"), absl::string_view::npos) << status;
}

TEST(FileDriver, InactivateFlushesAndGivesUpTheLocks) {
  const ScratchFile scratch;
  scratch.write(pattern(1024, 19));
  const auto driver = open_driver(scratch);
  ASSERT_TRUE(driver->inactivate().ok());
  {
    const auto other = open_driver(scratch);
    ASSERT_NE(other, nullptr);
    ASSERT_TRUE(other->set_length(5000, SetLengthMode::kExact).ok());
    ASSERT_TRUE(other->close().ok());
  }
  ASSERT_TRUE(driver->activate().ok());
  EXPECT_EQ(driver->length_bytes(), 5000u);
  EXPECT_FALSE(FileDriver::open(scratch.path(), {}).ok());
}

TEST(FileDriver, CloseReportsAFailedFlush) {
  const ScratchFile scratch;
  scratch.write(pattern(1024, 20));
  const auto driver = open_driver(scratch);
  SyscallHooks hooks;
  hooks.fdatasync = [](int) {
    errno = EDQUOT;
    return -1;
  };
  const ScopedSyscallHooks scope(&hooks);
  EXPECT_EQ(errno_of(driver->close()), EDQUOT);
}

TEST(FileDriver, RequestsInFlightSurviveReopening) {
  const ScratchFile scratch;
  const std::vector<uint8_t> content = pattern(1 << 20, 21);
  scratch.write(content);
  const auto driver = open_driver(scratch);
  std::atomic<bool> stop{false};
  std::atomic<int> reads{0};
  std::thread reader([&] {
    const AlignedMemory memory(65536);
    while (!stop.load()) {
      ASSERT_TRUE(driver->read(memory.qiov(), Sector(128)).ok());
      ASSERT_EQ(memory.data()[0], content[65536]);
      reads.fetch_add(1);
    }
  });
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(driver->reopen({.read_only = i % 2 == 0}).ok());
    const int seen = reads.load();
    while (reads.load() == seen) std::this_thread::yield();
  }
  stop.store(true);
  reader.join();
}

TEST(FileDriver, InfoTellsBothSizes) {
  const ScratchFile scratch;
  scratch.write({});
  const auto driver = open_driver(scratch);
  ASSERT_TRUE(driver->set_length(1 << 20, SetLengthMode::kExact).ok());
  const ImageInfo info = driver->info();
  EXPECT_EQ(info.format, "raw");
  EXPECT_EQ(info.virtual_size_bytes, uint64_t{1} << 20);
  EXPECT_EQ(info.actual_size_bytes, 0u);
}

// ---- Direct -----------------------------------------------------------------

class DirectFileDriver : public FileDriverTest {
 protected:
  // Null where the file system has no O_DIRECT.
  std::shared_ptr<FileDriver> open_direct(
      const std::vector<uint8_t>& content) const {
    scratch_.write(content);
    auto driver =
        FileDriver::open(scratch_.path(), flipped({&OpenOptions::direct}));
    if (!driver.ok()) {
      EXPECT_NE(driver.status().message().find("O_DIRECT"),
                absl::string_view::npos)
          << driver.status();
      return nullptr;
    }
    return *driver;
  }
};

INSTANTIATE_TEST_SUITE_P(
    Places, DirectFileDriver,
    ::testing::Values(ScratchFile::Place::kTestFolder,
                      ScratchFile::Place::kMemory),
    [](const ::testing::TestParamInfo<ScratchFile::Place>& info) {
      return info.param == ScratchFile::Place::kMemory ? "Memory" : "Folder";
    });

TEST_P(DirectFileDriver, AnnouncesItsAlignmentAndNeverTries) {
  const auto driver = open_direct(pattern(1 << 20, 30));
  if (driver == nullptr) GTEST_SKIP() << "no O_DIRECT";
  const DriverLimits limits = driver->limits();
  EXPECT_GE(limits.request_alignment_bytes, 512u);
  EXPECT_GE(limits.memory_alignment_bytes, 512u);
  EXPECT_FALSE(limits.writes_take_turns);
  EXPECT_FALSE(driver->capabilities().has(Capability::kTryRead));
  EXPECT_FALSE(driver->capabilities().has(Capability::kTryWrite));
  const AlignedMemory memory(limits.request_alignment_bytes);
  EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 0u);
}

TEST_P(DirectFileDriver, OddLengthsReadAndWriteToTheByte) {
  for (const size_t length : {1000u, 4097u, 70000u}) {
    const auto driver = open_direct(pattern(length, 31));
    if (driver == nullptr) GTEST_SKIP() << "no O_DIRECT";
    const uint32_t unit = driver->limits().request_alignment_bytes;
    const uint64_t whole = (length + unit - 1) / unit * unit;
    EXPECT_EQ(read_sectors(*driver, 0, whole / 512),
              zero_padded(pattern(length, 31), whole));
    if (whole - length >= 512) continue;  // would be a growing write
    const std::vector<uint8_t> data = pattern(whole, 32);
    ASSERT_TRUE(driver->write(AlignedMemory(data).qiov(), Sector(0)).ok());
    EXPECT_EQ(driver->length_bytes(), length);
    EXPECT_EQ(scratch_.content(),
              (std::vector<uint8_t>(data.begin(), data.begin() + length)));
    // The tail went another way; direct reads see it.
    EXPECT_EQ(read_sectors(*driver, 0, whole / 512),
              zero_padded(scratch_.content(), whole));
  }
}

TEST_P(DirectFileDriver, OnlyTheTailGoesThroughThePageCache) {
  const auto driver = open_direct(pattern(4096 + 100, 33));
  if (driver == nullptr) GTEST_SKIP() << "no O_DIRECT";
  if (driver->limits().request_alignment_bytes != 512)
    GTEST_SKIP() << "the tail lies in a larger unit";
  std::vector<std::pair<bool, uint64_t>> writes;
  SyscallHooks hooks;
  hooks.write = [&](int fd, const iovec* segments, int count, off_t offset) {
    const bool direct = (::fcntl(fd, F_GETFL) & O_DIRECT) != 0;
    const ssize_t done = testing::real_pwritev(fd, segments, count, offset);
    writes.emplace_back(direct, done);
    return done;
  };
  const ScopedSyscallHooks scope(&hooks);
  ASSERT_TRUE(driver->write(AlignedMemory(4608, 1).qiov(), Sector(0)).ok());
  EXPECT_EQ(writes, (std::vector<std::pair<bool, uint64_t>>{{true, 4096},
                                                            {false, 100}}));
}

// ---- Against a model --------------------------------------------------------

// A file as it should be; its length is model.size().
class RandomRun {
 public:
  RandomRun(FileDriver* driver, uint64_t seed)
      : driver_(driver),
        unit_(driver->limits().request_alignment_bytes),
        random_(seed) {}

  void step() {
    switch (pick(8)) {
      case 0:
      case 1:
      case 2:
        return write();
      case 3:
        return write_zeroes();
      case 4:
        return discard();
      case 5:
        return set_length();
      default:
        return read();
    }
  }

  const std::vector<uint8_t>& model() const { return model_; }
  void read_all() { check({0, round_up(model_.size())}); }

 private:
  static constexpr uint64_t kMostUnits = 64;

  uint64_t pick(uint64_t below) { return random_() % below; }
  uint64_t round_up(uint64_t bytes) const {
    return (bytes + unit_ - 1) / unit_ * unit_;
  }
  ByteRange any_range(uint64_t end) {
    const uint64_t units = end / unit_;
    const uint64_t first = pick(units);
    return {first * unit_, (1 + pick(units - first)) * unit_};
  }
  // A range of whole units that the driver's contract allows: within the file,
  // or growing it, but not cut off by a last partial unit above one sector.
  bool may_write(ByteRange range) const {
    const uint64_t last_sector_end = (model_.size() + 511) / 512 * 512;
    return range.end() <= model_.size() || range.end() >= last_sector_end;
  }

  void write() {
    const ByteRange range = any_range(kMostUnits * unit_);
    if (!may_write(range)) return;
    const AlignedMemory data(
        pattern(range.length, static_cast<uint32_t>(random_())));
    ASSERT_TRUE(
        driver_->write(data.qiov(), Sector::from_byte_offset(range.offset))
            .ok());
    grow_model(range.end());
    for (uint64_t i = 0; i < range.length && range.offset + i < model_.size();
         ++i)
      model_[range.offset + i] = data.data()[i];
  }

  void grow_model(uint64_t end) {
    const uint64_t last_sector_end = (model_.size() + 511) / 512 * 512;
    if (end > last_sector_end) model_.resize(end, 0);
  }

  void write_zeroes() {
    const ByteRange range = any_range(kMostUnits * unit_);
    if (!may_write(range)) return;
    const absl::Status status =
        driver_->write_zeroes(range, {.may_unmap = pick(2) == 0});
    if (absl::IsUnimplemented(status)) return;
    ASSERT_TRUE(status.ok()) << status;
    grow_model(range.end());
    for (uint64_t i = range.offset;
         i < std::min<uint64_t>(range.end(), model_.size()); ++i)
      model_[i] = 0;
  }

  // On the file systems of these tests a hole reads as zeroes.
  void discard() {
    const ByteRange range = any_range(kMostUnits * unit_);
    const absl::Status status = driver_->discard(range);
    if (absl::IsUnimplemented(status)) return;
    ASSERT_TRUE(status.ok()) << status;
    for (uint64_t i = range.offset;
         i < std::min<uint64_t>(range.end(), model_.size()); ++i)
      model_[i] = 0;
  }

  void set_length() {
    const uint64_t length = pick(kMostUnits * unit_);
    const bool exact = pick(2) == 0;
    ASSERT_TRUE(driver_
                    ->set_length(length, exact ? SetLengthMode::kExact
                                               : SetLengthMode::kGrowOnly)
                    .ok());
    if (exact || length > model_.size()) model_.resize(length, 0);
  }

  void read() {
    if (!model_.empty()) check(any_range(round_up(model_.size())));
  }

  void check(ByteRange range) {
    if (range.empty()) return;
    const AlignedMemory memory(range.length, 0xee);
    ASSERT_TRUE(
        driver_->read(memory.qiov(), Sector::from_byte_offset(range.offset))
            .ok());
    ASSERT_EQ(driver_->length_bytes(), model_.size());
    std::vector<uint8_t> expected(range.length, 0);
    const uint64_t end = std::min<uint64_t>(range.end(), model_.size());
    if (range.offset < end) {
      std::copy(model_.begin() + static_cast<ptrdiff_t>(range.offset),
                model_.begin() + static_cast<ptrdiff_t>(end), expected.begin());
    }
    const auto difference =
        std::mismatch(expected.begin(), expected.end(), memory.data());
    ASSERT_EQ(difference.first, expected.end())
        << "at "
        << range.offset +
               static_cast<uint64_t>(difference.first - expected.begin());
  }

  FileDriver* const driver_;
  const uint64_t unit_;
  std::mt19937_64 random_;
  std::vector<uint8_t> model_;
};

void run_against_model(FileDriver* driver, const ScratchFile& scratch) {
  RandomRun run(driver, testing::test_seed());
  for (int i = 0; i < 3000 && !::testing::Test::HasFatalFailure(); ++i)
    run.step();
  run.read_all();
  ASSERT_TRUE(driver->flush().ok());
  EXPECT_EQ(scratch.content(), run.model());
}

TEST_P(FileDriverTest, RandomRequestsMatchAModel) {
  scratch_.write({});
  run_against_model(open_driver(scratch_, {}).get(), scratch_);
}

TEST_P(DirectFileDriver, RandomRequestsMatchAModel) {
  const auto driver = open_direct({});
  if (driver == nullptr) GTEST_SKIP() << "no O_DIRECT";
  run_against_model(driver.get(), scratch_);
}

}  // namespace
}  // namespace spindle

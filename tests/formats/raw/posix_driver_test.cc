#include "formats/raw/posix_driver.h"

#include <errno.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/errors.h"
#include "tests/formats/raw/raw_test_files.h"
#include "tests/formats/raw/syscall_hooks.h"

namespace spindle {
namespace {

using testing::AlignedMemory;
using testing::locked_bytes;
using testing::pattern;
using testing::ScopedSyscallHooks;
using testing::ScratchFile;
using testing::SyscallHooks;

// The least that a driver adds; what is protected, for the tests.
class PlainDriver final : public PosixDriver {
 public:
  PlainDriver(std::unique_ptr<PosixFile> file, uint64_t length_bytes)
      : PosixDriver(std::move(file), length_bytes) {}

  absl::Status write(const IoVector& qiov, Sector sector) override {
    return write_bytes(qiov, qiov.length_bytes(), sector.byte_offset());
  }
  using PosixDriver::can_try_read;
  using PosixDriver::note_length_at_least;
  using PosixDriver::relearn_length;
  using PosixDriver::set_known_length;
  using PosixDriver::write_bytes;

  // What read_beyond_end() was last told.
  uint64_t beyond_offset = 0;
  uint64_t beyond_done = 0;

 private:
  absl::Status read_beyond_end(const IoVector&, uint64_t offset,
                               uint64_t done) override {
    beyond_offset = offset;
    beyond_done = done;
    return absl::OutOfRangeError("beyond the end");
  }
};

std::unique_ptr<PlainDriver> open(const std::string& path,
                                  const OpenOptions& options = {}) {
  auto file = PosixFile::open(path, PosixFileKind::kRegular, options);
  EXPECT_TRUE(file.ok()) << file.status();
  const auto length = (*file)->measure_length();
  EXPECT_TRUE(length.ok());
  return std::make_unique<PlainDriver>(*std::move(file), *length);
}

TEST(PosixDriver, ReadsAndWritesExactlyWhatItIsTold) {
  const ScratchFile scratch;
  scratch.write(pattern(8192, 1));
  const auto driver = open(scratch.path());
  EXPECT_EQ(driver->format_name(), "raw");
  EXPECT_EQ(driver->filename(), scratch.path());
  EXPECT_EQ(driver->limits().request_alignment_bytes, 512u);
  EXPECT_EQ(driver->limits().memory_alignment_bytes, 1u);
  EXPECT_TRUE(driver->limits().writes_take_turns);
  AlignedMemory memory(1024);
  ASSERT_TRUE(driver->read(memory.qiov(), Sector(2)).ok());
  std::vector<uint8_t> expected = pattern(8192, 1);
  EXPECT_TRUE(std::equal(expected.begin() + 1024, expected.begin() + 2048,
                         memory.data()));
  // Part of the vector, to the byte.
  ASSERT_TRUE(
      driver->write_bytes(AlignedMemory(1024, 9).qiov(), 700, 512).ok());
  std::fill(expected.begin() + 512, expected.begin() + 512 + 700, 9);
  EXPECT_EQ(scratch.content(), expected);
}

TEST(PosixDriver, AReadBeyondTheEndIsTheDriversToDecide) {
  const ScratchFile scratch;
  scratch.write(pattern(1300, 1));
  const auto driver = open(scratch.path());
  const absl::Status status =
      driver->read(AlignedMemory(1024).qiov(), Sector(1));
  EXPECT_TRUE(absl::IsOutOfRange(status)) << status;
  EXPECT_EQ(driver->beyond_offset, 512u);
  EXPECT_EQ(driver->beyond_done, 1300u - 512);
}

TEST(PosixDriver, ErrorsTellErrnoAndPlace) {
  const ScratchFile scratch;
  scratch.write(pattern(8192, 1));
  const auto driver = open(scratch.path());
  SyscallHooks hooks;
  // One sector, then an error.
  hooks.read = [](int fd, const iovec* segments, int, off_t offset) {
    if (offset != 1024) {
      errno = EIO;
      return ssize_t{-1};
    }
    const iovec first{segments[0].iov_base, 512};
    return testing::real_preadv(fd, &first, 1, offset);
  };
  hooks.write = [](int, const iovec*, int, off_t) {
    errno = ENOSPC;
    return ssize_t{-1};
  };
  const ScopedSyscallHooks scope(&hooks);
  const absl::Status read = driver->read(AlignedMemory(1024).qiov(), Sector(2));
  EXPECT_EQ(errno_of(read), EIO);
  EXPECT_TRUE(absl::StrContains(read.message(), "offset 1536")) << read;
  const absl::Status write =
      driver->write(AlignedMemory(1024).qiov(), Sector(2));
  EXPECT_EQ(errno_of(write), ENOSPC);
  EXPECT_TRUE(absl::IsResourceExhausted(write));
  EXPECT_TRUE(absl::StrContains(write.message(), "offset 1024")) << write;
}

TEST(PosixDriver, TryReadGivesUpForGoodWhereTheKernelCannot) {
  const ScratchFile scratch;  // not on tmpfs
  scratch.write(pattern(8192, 1));
  const auto driver = open(scratch.path());
  ASSERT_TRUE(driver->can_try_read());
  int error_number = EAGAIN;
  SyscallHooks hooks;
  hooks.read_without_wait = [&](int, const iovec*, int, off_t) {
    errno = error_number;
    return ssize_t{-1};
  };
  AlignedMemory memory(512);
  {
    const ScopedSyscallHooks scope(&hooks);
    EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 0u);
    EXPECT_TRUE(driver->can_try_read());
    error_number = EOPNOTSUPP;
    EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 0u);
    EXPECT_FALSE(driver->can_try_read());
  }
  EXPECT_EQ(driver->try_read(memory.qiov(), Sector(0)), 0u);
}

TEST(PosixDriver, TheKnownLengthGrowsAndIsSet) {
  const ScratchFile scratch;
  scratch.write(pattern(4096, 1));
  const auto driver = open(scratch.path());
  driver->note_length_at_least(1000);
  EXPECT_EQ(driver->length_bytes(), 4096u);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 1000; ++i)
        driver->note_length_at_least(5000 + i * 4 + t);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(driver->length_bytes(), 5000u + 3999);
  driver->set_known_length(700);
  EXPECT_EQ(driver->length_bytes(), 700u);
  driver->relearn_length();
  EXPECT_EQ(driver->length_bytes(), 4096u);
  driver->note_length_at_least(5000);
  driver->relearn_length();  // never less
  EXPECT_EQ(driver->length_bytes(), 5000u);
}

TEST(PosixDriver, InactivateFlushesWhatWasWrittenAndGivesUpTheLocks) {
  for (bool read_only : {false, true}) {
    SCOPED_TRACE(read_only);
    const ScratchFile scratch;
    scratch.write(pattern(4096, 1));
    OpenOptions options;
    options.read_only = read_only;
    const auto driver = open(scratch.path(), options);
    const std::set<int> held = locked_bytes(scratch.path());
    EXPECT_FALSE(held.empty());
    int flushes = 0;
    SyscallHooks hooks;
    hooks.fdatasync = [&](int) { return ++flushes, 0; };
    {
      const ScopedSyscallHooks scope(&hooks);
      ASSERT_TRUE(driver->inactivate().ok());
    }
    EXPECT_EQ(flushes, read_only ? 0 : 1);
    EXPECT_TRUE(locked_bytes(scratch.path()).empty());
    // Somebody else makes it shorter.
    scratch.write(pattern(1024, 2));
    ASSERT_TRUE(driver->activate().ok());
    EXPECT_EQ(driver->length_bytes(), 1024u);
    EXPECT_EQ(locked_bytes(scratch.path()), held);
  }
}

TEST(PosixDriver, AFailedFlushKeepsItActiveButNotOpen) {
  const ScratchFile scratch;
  scratch.write(pattern(4096, 1));
  const auto driver = open(scratch.path());
  const std::set<int> held = locked_bytes(scratch.path());
  SyscallHooks hooks;
  hooks.fdatasync = [](int) {
    errno = EIO;
    return -1;
  };
  const ScopedSyscallHooks scope(&hooks);
  EXPECT_EQ(errno_of(driver->inactivate()), EIO);
  EXPECT_EQ(locked_bytes(scratch.path()), held);
  EXPECT_EQ(errno_of(driver->close()), EIO);
  EXPECT_TRUE(locked_bytes(scratch.path()).empty());
}

TEST(PosixDriver, ActivateWaitsForNobody) {
  const ScratchFile scratch;
  scratch.write(pattern(4096, 1));
  const auto driver = open(scratch.path());
  ASSERT_TRUE(driver->inactivate().ok());
  const auto other = open(scratch.path());
  EXPECT_TRUE(absl::IsUnavailable(driver->activate()));
  ASSERT_TRUE(other->close().ok());
  EXPECT_TRUE(driver->activate().ok());
}

TEST(PosixDriver, ReopenChangesWhatItMayDo) {
  const ScratchFile scratch;
  scratch.write(pattern(4096, 1));
  const auto driver = open(scratch.path());
  ASSERT_TRUE(driver->reopen({.read_only = true}).ok());
  EXPECT_TRUE(driver->read_only());
  EXPECT_EQ(errno_of(driver->write_bytes(AlignedMemory(512).qiov(), 512, 0)),
            EBADF);
  ASSERT_TRUE(driver->reopen({.read_only = false}).ok());
  EXPECT_TRUE(driver->write_bytes(AlignedMemory(512).qiov(), 512, 0).ok());
}

TEST(PosixDriver, ReopenLeavesThePageCacheAndComesBack) {
  const ScratchFile scratch;
  scratch.write(pattern(4096 + 100, 1));
  const auto driver = open(scratch.path());
  const uint32_t alignment = driver->limits().memory_alignment_bytes;
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(driver->reopen({.direct = true}).ok());
    EXPECT_GE(driver->limits().memory_alignment_bytes, 512u);
    // Ragged at the end of the file: through the other descriptor.
    const AlignedMemory data(pattern(4096 + 512, 7));
    EXPECT_TRUE(driver->write_bytes(data.qiov(), 4096 + 100, 0).ok());
    ASSERT_TRUE(driver->reopen({}).ok());
    EXPECT_GE(driver->limits().memory_alignment_bytes, 512u);
    ASSERT_TRUE(driver->reopen({.direct = false}).ok());
    EXPECT_EQ(driver->limits().memory_alignment_bytes, alignment);
    EXPECT_TRUE(driver->write_bytes(data.qiov(), 3, 1).ok());
  }
  EXPECT_EQ(scratch.length(), 4096u + 100);
  EXPECT_TRUE(driver->close().ok());
}

TEST(PosixDriver, ReopenRefusesOptionsThatItDoesNotHave) {
  const ScratchFile scratch;
  scratch.write(pattern(4096, 1));
  const auto driver = open(scratch.path());
  const absl::Status status = driver->reopen(
      {.read_only = true, .driver_options = {{"locking", "off"}}});
  EXPECT_EQ(status.message(), "Cannot change the option 'locking'");
  EXPECT_FALSE(driver->read_only());
}

}  // namespace
}  // namespace spindle

#include "formats/raw/posix_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "engine/errors.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"
#include "tests/formats/raw/syscall_hooks.h"

namespace spindle {
namespace {

using testing::flipped;

using testing::locked_bytes;
using testing::pattern;
using testing::ScopedSyscallHooks;
using testing::ScratchFile;
using testing::SyscallHooks;

absl::StatusOr<std::unique_ptr<PosixFile>> open_file(
    const std::string& path, const OpenOptions& options = {}) {
  return PosixFile::open(path, PosixFileKind::kRegular, options);
}

// Writes one byte at offset 0; 0 or the errno.
int write_byte(const PosixFile& file, char byte) {
  return ::pwrite(file.fd(), &byte, 1, 0) == 1 ? 0 : errno;
}

TEST(PosixFile, ANameThatIsNotThereKeepsItsErrno) {
  const absl::Status status = open_file("/nonexistent/x").status();
  EXPECT_EQ(errno_of(status), ENOENT);
  EXPECT_TRUE(absl::StrContains(status.message(), "/nonexistent/x"));
}

TEST(PosixFile, OtherKindsOfFilesAreRefusedByName) {
  struct Case {
    const char* wanted;
    std::string path;
  };
  const ScratchFile fifo;
  ASSERT_EQ(::mkfifo(fifo.path().c_str(), 0600), 0);
  for (const Case& c :
       {Case{"a directory", ::testing::TempDir()}, Case{"a FIFO", fifo.path()},
        Case{"a character device", "/dev/null"}}) {
    for (const bool read_only : {false, true}) {
      const absl::Status status =
          open_file(c.path, read_only ? flipped({&OpenOptions::read_only})
                                      : OpenOptions())
              .status();
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << c.path;
      EXPECT_TRUE(absl::StrContains(status.message(), c.wanted)) << status;
    }
  }
  const ScratchFile regular;
  regular.write({});
  EXPECT_TRUE(absl::StrContains(
      PosixFile::open(regular.path(), PosixFileKind::kBlockDevice, {})
          .status()
          .message(),
      "a regular file, not a block device"));
}

TEST(PosixFile, DescriptorsAreCloseOnExecAndBlocking) {
  const ScratchFile scratch;
  scratch.write(pattern(100000, 1));
  for (const bool direct : {false, true}) {
    const auto file =
        open_file(scratch.path(),
                  direct ? flipped({&OpenOptions::direct}) : OpenOptions());
    if (direct && !file.ok()) continue;
    ASSERT_TRUE(file.ok()) << file.status();
    for (const bool again : {false, true}) {
      if (again) {
        ASSERT_TRUE((*file)->reopen({.read_only = false}).ok());
      }
      for (const int fd : {(*file)->fd(), (*file)->buffered_fd()}) {
        EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
        EXPECT_EQ(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
      }
      EXPECT_EQ((::fcntl((*file)->fd(), F_GETFL) & O_DIRECT) != 0, direct);
      EXPECT_EQ(::fcntl((*file)->buffered_fd(), F_GETFL) & O_DIRECT, 0);
    }
  }
}

TEST(PosixFile, ForcedSharingNeedsReadOnly) {
  const ScratchFile scratch;
  scratch.write({});
  EXPECT_TRUE(absl::IsInvalidArgument(
      open_file(scratch.path(), flipped({&OpenOptions::force_share}))
          .status()));
  const auto file =
      open_file(scratch.path(),
                flipped({&OpenOptions::read_only, &OpenOptions::force_share}));
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*file)->reopen({.read_only = false})));
}

TEST(PosixFile, IdentityIsTheFilesNotTheNames) {
  const ScratchFile a;
  const ScratchFile b;
  const ScratchFile other;
  a.write({});
  other.write({});
  ASSERT_EQ(::symlink(a.path().c_str(), b.path().c_str()), 0);
  const OpenOptions reader = flipped({&OpenOptions::read_only});
  EXPECT_EQ((*open_file(a.path(), reader))->identity(),
            (*open_file(b.path(), reader))->identity());
  EXPECT_FALSE((*open_file(a.path(), reader))->identity() ==
               (*open_file(other.path(), reader))->identity());
}

TEST(PosixFile, ReopenChangesTheAccessUnderTheSameNumber) {
  const ScratchFile scratch;
  scratch.write(pattern(512, 1));
  const auto file = open_file(scratch.path());
  ASSERT_TRUE(file.ok());
  const int fd = (*file)->fd();
  EXPECT_EQ(write_byte(**file, 'a'), 0);
  ASSERT_TRUE((*file)->reopen({.read_only = true}).ok());
  EXPECT_TRUE((*file)->read_only());
  EXPECT_EQ((*file)->fd(), fd);
  EXPECT_EQ(write_byte(**file, 'b'), EBADF);
  ASSERT_TRUE((*file)->reopen({.read_only = false}).ok());
  EXPECT_FALSE((*file)->read_only());
  EXPECT_EQ(write_byte(**file, 'c'), 0);
  EXPECT_EQ(scratch.content()[0], 'c');
}

TEST(PosixFile, ReopenChangesTheLocks) {
  const ScratchFile scratch;
  scratch.write(pattern(512, 1));
  const std::set<int> writer = {100, 101, 103, 201, 203};
  const std::set<int> reader = {100, 201, 203};
  const auto file = open_file(scratch.path());
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(locked_bytes(scratch.path()), writer);
  ASSERT_TRUE((*file)->reopen({.read_only = true}).ok());
  EXPECT_EQ(locked_bytes(scratch.path()), reader);
  ASSERT_TRUE((*file)->reopen({.read_only = false}).ok());
  EXPECT_EQ(locked_bytes(scratch.path()), writer);
}

TEST(PosixFile, ReopenThatConflictsLeavesEverythingAsItWas) {
  const ScratchFile scratch;
  scratch.write(pattern(512, 1));
  const OpenOptions reader = flipped({&OpenOptions::read_only});
  const auto file = open_file(scratch.path(), reader);
  const auto other = open_file(scratch.path(), reader);
  ASSERT_TRUE(file.ok() && other.ok());
  const absl::Status status = (*file)->reopen({.read_only = false});
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE((*file)->read_only());
  EXPECT_EQ(write_byte(**file, 'x'), EBADF);
  EXPECT_EQ(locked_bytes(scratch.path()), (std::set<int>{100, 201, 203}));
}

TEST(PosixFile, ReopenFollowsTheFileNotItsName) {
  const ScratchFile scratch;
  const ScratchFile moved;
  scratch.write(pattern(512, 1));
  const auto file = open_file(scratch.path());
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(::rename(scratch.path().c_str(), moved.path().c_str()), 0);
  scratch.write(pattern(512, 2));
  ASSERT_TRUE((*file)->reopen({.read_only = false}).ok());
  EXPECT_EQ(write_byte(**file, 'm'), 0);
  EXPECT_EQ(moved.content()[0], 'm');
  EXPECT_NE(scratch.content()[0], 'm');
}

TEST(PosixFile, AFailedFlushIsRememberedUntilReopened) {
  const ScratchFile scratch;
  scratch.write(pattern(512, 1));
  const auto file = open_file(scratch.path());
  ASSERT_TRUE(file.ok());
  int calls = 0;
  SyscallHooks hooks;
  hooks.fdatasync = [&](int) {
    errno = EIO;
    return ++calls == 1 ? -1 : 0;
  };
  const ScopedSyscallHooks scope(&hooks);
  EXPECT_EQ(errno_of((*file)->flush()), EIO);
  EXPECT_EQ(errno_of((*file)->flush()), EIO);
  EXPECT_EQ(errno_of((*file)->reopen({.read_only = true})),
            EIO);  // would hide the loss
  EXPECT_FALSE((*file)->read_only());
  EXPECT_TRUE((*file)->reopen({.read_only = false}).ok());
  EXPECT_TRUE((*file)->flush().ok());
}

TEST(PosixFile, GoingReadOnlyFlushes) {
  const ScratchFile scratch;
  scratch.write(pattern(512, 1));
  const auto file = open_file(scratch.path());
  ASSERT_TRUE(file.ok());
  int calls = 0;
  SyscallHooks hooks;
  hooks.fdatasync = [&](int fd) {
    ++calls;
    return testing::real_fdatasync(fd);
  };
  const ScopedSyscallHooks scope(&hooks);
  EXPECT_TRUE((*file)->reopen({.read_only = true}).ok());
  EXPECT_EQ(calls, 1);
}

TEST(PosixFile, NoFlushFlushesNothing) {
  const ScratchFile scratch;
  scratch.write({});
  const auto file =
      open_file(scratch.path(), flipped({&OpenOptions::no_flush}));
  ASSERT_TRUE(file.ok());
  SyscallHooks hooks;
  hooks.fdatasync = [&](int) {
    ADD_FAILURE() << "fdatasync was called";
    return 0;
  };
  const ScopedSyscallHooks scope(&hooks);
  EXPECT_TRUE((*file)->flush().ok());
}

TEST(PosixFile, LocksAreGivenUpAndTakenAgain) {
  const ScratchFile scratch;
  scratch.write({});
  const auto file = open_file(scratch.path());
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->release_locks().ok());
  EXPECT_TRUE(locked_bytes(scratch.path()).empty());
  {
    const auto other = open_file(scratch.path());
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_TRUE(absl::IsUnavailable((*file)->take_locks()));
  }
  EXPECT_TRUE((*file)->take_locks().ok());
  EXPECT_FALSE(open_file(scratch.path()).ok());
}

}  // namespace
}  // namespace spindle

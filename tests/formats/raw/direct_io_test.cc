#include "formats/raw/direct_io.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "formats/raw/owned_fd.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"
#include "tests/formats/raw/syscall_hooks.h"

namespace spindle {
namespace {

using testing::pattern;
using testing::ScopedSyscallHooks;
using testing::ScratchFile;
using testing::SyscallHooks;

class DirectIo : public ::testing::Test {
 protected:
  // With statx silenced, so that reads are tried.
  absl::StatusOr<uint32_t> try_with(size_t file_bytes, size_t true_alignment,
                                    size_t memory_alignment = 1) {
    file_.write(pattern(file_bytes, 1));
    const OwnedFd fd(::open(file_.path().c_str(), O_RDONLY | O_CLOEXEC));
    SyscallHooks hooks;
    hooks.statx = [] {
      errno = ENOSYS;
      return -1;
    };
    hooks.read = [true_alignment, memory_alignment](
                     int, const iovec* segments, int, off_t offset) -> ssize_t {
      const auto address = reinterpret_cast<uintptr_t>(segments->iov_base);
      if ((segments->iov_len | static_cast<size_t>(offset)) % true_alignment !=
              0 ||
          address % std::max(memory_alignment, true_alignment) != 0) {
        errno = EINVAL;
        return -1;
      }
      return static_cast<ssize_t>(segments->iov_len);
    };
    const ScopedSyscallHooks scope(&hooks);
    return find_direct_io_alignment(fd.get(), "f");
  }

  ScratchFile file_;
};

TEST_F(DirectIo, TriesGrowingAlignments) {
  EXPECT_EQ(*try_with(1 << 20, 1), 512u);
  EXPECT_EQ(*try_with(1 << 20, 512), 512u);
  EXPECT_EQ(*try_with(1 << 20, 4096), 4096u);
  EXPECT_EQ(*try_with(1 << 20, 65536), 65536u);
}

TEST_F(DirectIo, TriesTheAlignmentOfMemoryToo) {
  EXPECT_EQ(*try_with(1 << 20, 512, 4096), 4096u);
}

TEST_F(DirectIo, RefusesAFileThatTakesNoDirectRead) {
  const absl::Status status = try_with(1 << 20, 1 << 20).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_NE(status.message().find("O_DIRECT"), absl::string_view::npos);
}

TEST_F(DirectIo, AssumesTheUsualBlockForAFileTooShortToTry) {
  EXPECT_EQ(*try_with(0, 512), 4096u);
  EXPECT_EQ(*try_with(1000, 512), 4096u);
}

TEST_F(DirectIo, WhatIsFoundWorks) {
  file_.write(pattern(1 << 20, 2));
  const OwnedFd fd(
      ::open(file_.path().c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!fd.valid()) GTEST_SKIP() << "no O_DIRECT in the test folder";
  const absl::StatusOr<uint32_t> alignment =
      find_direct_io_alignment(fd.get(), "f");
  ASSERT_TRUE(alignment.ok()) << alignment.status();
  const testing::AlignedMemory memory(size_t{3} * *alignment);
  EXPECT_EQ(::pread(fd.get(), memory.data() + *alignment, *alignment,
                    3 * static_cast<off_t>(*alignment)),
            static_cast<ssize_t>(*alignment));
}

}  // namespace
}  // namespace spindle

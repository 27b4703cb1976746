#include "formats/raw/fd_io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>

#include <algorithm>
#include <cstring>
#include <vector>

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

class FdIo : public ::testing::Test {
 protected:
  void open_with(const std::vector<uint8_t>& content) {
    file_.write(content);
    fd_ = OwnedFd(::open(file_.path().c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(fd_.valid());
  }

  ScratchFile file_;
  OwnedFd fd_;
  SyscallHooks hooks_;
};

// `count` segments of `bytes` each, one after another in `memory`.
IoVector many_segments(std::vector<uint8_t>* memory, size_t count,
                       size_t bytes) {
  memory->assign(count * bytes, 0);
  std::vector<iovec> segments(count);
  for (size_t i = 0; i < count; ++i)
    segments[i] = {memory->data() + i * bytes, bytes};
  return IoVector(segments);
}

TEST_F(FdIo, ContinuesShortReadsAndInterruptedOnes) {
  const std::vector<uint8_t> content = pattern(8192, 1);
  open_with(content);
  int calls = 0;
  hooks_.read = [&](int fd, const iovec* segments, int,
                    off_t offset) -> ssize_t {
    if (++calls % 2 == 1) {
      errno = EINTR;
      return -1;
    }
    iovec one = segments[0];
    one.iov_len = std::min<size_t>(one.iov_len, 1000);
    return testing::real_preadv(fd, &one, 1, offset);
  };
  std::vector<uint8_t> out(8192);
  const ScopedSyscallHooks scope(&hooks_);
  const IoVector qiov({{out.data(), 3000}, {out.data() + 3000, 5192}});
  const Transfer transfer = read_fully(fd_.get(), qiov, 0, 1);
  EXPECT_EQ(transfer.error_number, 0);
  EXPECT_EQ(transfer.bytes, 8192u);
  EXPECT_EQ(out, content);
  EXPECT_GT(calls, 16);
}

TEST_F(FdIo, ContinuesShortWritesAndInterruptedOnes) {
  open_with(std::vector<uint8_t>(8192));
  std::vector<uint8_t> content = pattern(8192, 2);
  int calls = 0;
  hooks_.write = [&](int fd, const iovec* segments, int,
                     off_t offset) -> ssize_t {
    if (++calls % 2 == 1) {
      errno = EINTR;
      return -1;
    }
    iovec one = segments[0];
    one.iov_len = std::min<size_t>(one.iov_len, 777);
    return testing::real_pwritev(fd, &one, 1, offset);
  };
  {
    const ScopedSyscallHooks scope(&hooks_);
    const IoVector qiov({{content.data(), 100}, {content.data() + 100, 8092}});
    const Transfer transfer = write_fully(fd_.get(), qiov, 0, 8192, 0, 1);
    EXPECT_EQ(transfer.error_number, 0);
    EXPECT_EQ(transfer.bytes, 8192u);
  }
  EXPECT_EQ(file_.content(), content);
}

TEST_F(FdIo, SplitsAtTheKernelsMostSegments) {
  const std::vector<uint8_t> content = pattern(size_t{3000} * 512, 3);
  open_with(content);
  std::vector<int> counts;
  hooks_.read = [&](int fd, const iovec* segments, int count, off_t offset) {
    counts.push_back(count);
    return testing::real_preadv(fd, segments, count, offset);
  };
  std::vector<uint8_t> out;
  const IoVector qiov = many_segments(&out, 3000, 512);
  const ScopedSyscallHooks scope(&hooks_);
  const Transfer transfer = read_fully(fd_.get(), qiov, 0, 1);
  EXPECT_EQ(transfer.bytes, content.size());
  EXPECT_EQ(out, content);
  EXPECT_EQ(counts, (std::vector<int>{IOV_MAX, IOV_MAX, 3000 - 2 * IOV_MAX}));
}

TEST_F(FdIo, SplitsAtTheKernelsMostBytesOnTheGrid) {
  open_with({});
  std::vector<uint64_t> lengths;
  hooks_.write = [&](int, const iovec* segments, int count, off_t) -> ssize_t {
    uint64_t bytes = 0;
    for (int i = 0; i < count; ++i) bytes += segments[i].iov_len;
    lengths.push_back(bytes);
    return static_cast<ssize_t>(bytes);
  };
  // Addresses only: nothing is read from there.
  std::vector<uint8_t> byte(1);
  const IoVector qiov(byte.data(), uint64_t{5} << 30);
  const ScopedSyscallHooks scope(&hooks_);
  const Transfer transfer =
      write_fully(fd_.get(), qiov, 0, qiov.length_bytes(), 0, 65536);
  EXPECT_EQ(transfer.bytes, uint64_t{5} << 30);
  EXPECT_EQ(lengths,
            (std::vector<uint64_t>{0x7fff0000, 0x7fff0000, 0x40020000}));
}

TEST_F(FdIo, ReadStopsAtTheEndOfTheFile) {
  const std::vector<uint8_t> content = pattern(700, 4);
  open_with(content);
  std::vector<uint8_t> out(1024, 0xee);
  const Transfer transfer =
      read_fully(fd_.get(), IoVector(out.data(), out.size()), 0, 1);
  EXPECT_EQ(transfer.bytes, 700u);
  EXPECT_EQ(transfer.error_number, 0);
  EXPECT_EQ(out[699], content[699]);
  EXPECT_EQ(out[700], 0xee);
}

TEST_F(FdIo, DirectReadDoesNotAskAgainOffItsGrid) {
  open_with(pattern(700, 5));
  int calls = 0;
  hooks_.read = [&](int fd, const iovec* segments, int count, off_t offset) {
    ++calls;
    EXPECT_EQ(offset % 512, 0);
    return testing::real_preadv(fd, segments, count, offset);
  };
  std::vector<uint8_t> out(1024);
  const ScopedSyscallHooks scope(&hooks_);
  const Transfer transfer =
      read_fully(fd_.get(), IoVector(out.data(), out.size()), 0, 512);
  EXPECT_EQ(transfer.bytes, 700u);
  EXPECT_EQ(calls, 1);
}

TEST_F(FdIo, ErrorKeepsWhatWasTransferredBefore) {
  open_with(std::vector<uint8_t>(4096));
  int calls = 0;
  hooks_.write = [&](int, const iovec*, int, off_t) -> ssize_t {
    if (++calls == 1) return 1024;
    errno = EIO;
    return -1;
  };
  std::vector<uint8_t> memory(4096);
  const ScopedSyscallHooks scope(&hooks_);
  const Transfer transfer = write_fully(
      fd_.get(), IoVector(memory.data(), memory.size()), 0, 4096, 0, 1);
  EXPECT_EQ(transfer.bytes, 1024u);
  EXPECT_EQ(transfer.error_number, EIO);
}

TEST_F(FdIo, WriteThatMakesNoProgressIsOutOfSpace) {
  open_with({});
  hooks_.write = [](int, const iovec*, int, off_t) -> ssize_t { return 0; };
  std::vector<uint8_t> memory(512);
  const ScopedSyscallHooks scope(&hooks_);
  EXPECT_EQ(write_fully(fd_.get(), IoVector(memory.data(), 512), 0, 512, 0, 1)
                .error_number,
            ENOSPC);
}

TEST_F(FdIo, WritesAPartOfTheVector) {
  open_with(std::vector<uint8_t>(2048));
  std::vector<uint8_t> memory = pattern(2048, 6);
  const IoVector qiov({{memory.data(), 700}, {memory.data() + 700, 1348}});
  EXPECT_EQ(write_fully(fd_.get(), qiov, 512, 1024, 100, 1).bytes, 1024u);
  const std::vector<uint8_t> content = file_.content();
  EXPECT_TRUE(std::equal(memory.begin() + 512, memory.begin() + 1536,
                         content.begin() + 100));
  EXPECT_EQ(content[99], 0);
  EXPECT_EQ(content[1124], 0);
}

}  // namespace
}  // namespace spindle

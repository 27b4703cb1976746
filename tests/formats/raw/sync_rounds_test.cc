#include "formats/raw/sync_rounds.h"

#include <errno.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/syscall_hooks.h"

namespace spindle {
namespace {

using testing::ScopedSyscallHooks;
using testing::SyscallHooks;

constexpr int kFd = 1000;  // only the hook sees it

TEST(SyncRounds, EachCallByItselfSyncsOnce) {
  std::atomic<int> calls{0};
  SyscallHooks hooks;
  hooks.fdatasync = [&](int fd) {
    EXPECT_EQ(fd, kFd);
    ++calls;
    return 0;
  };
  const ScopedSyscallHooks scope(&hooks);
  SyncRounds rounds;
  EXPECT_EQ(rounds.sync(kFd), 0);
  EXPECT_EQ(rounds.sync(kFd), 0);
  EXPECT_EQ(calls, 2);
}

TEST(SyncRounds, AFailureIsKeptUntilForgotten) {
  int calls = 0;
  SyscallHooks hooks;
  hooks.fdatasync = [&](int) {
    errno = EIO;
    return ++calls == 1 ? -1 : 0;
  };
  const ScopedSyscallHooks scope(&hooks);
  SyncRounds rounds;
  EXPECT_EQ(rounds.sync(kFd), EIO);
  EXPECT_EQ(rounds.sync(kFd), EIO);
  EXPECT_EQ(calls, 1);
  rounds.forget_failure();
  EXPECT_EQ(rounds.sync(kFd), 0);
}

TEST(SyncRounds, AnInterruptedCallIsRepeated) {
  int calls = 0;
  SyscallHooks hooks;
  hooks.fdatasync = [&](int) {
    errno = EINTR;
    return ++calls == 1 ? -1 : 0;
  };
  const ScopedSyscallHooks scope(&hooks);
  SyncRounds rounds;
  EXPECT_EQ(rounds.sync(kFd), 0);
  EXPECT_EQ(calls, 2);
}

// Whoever asks while a sync runs must not be answered by it: his writes may be
// too late for it.
TEST(SyncRounds, ALateCallerWaitsForTheNextRound) {
  absl::Notification first_runs;
  absl::Notification first_may_end;
  std::atomic<int> calls{0};
  SyscallHooks hooks;
  hooks.fdatasync = [&](int) {
    if (calls.fetch_add(1) == 0) {
      first_runs.Notify();
      first_may_end.WaitForNotification();
    }
    return 0;
  };
  const ScopedSyscallHooks scope(&hooks);
  SyncRounds rounds;
  std::thread first([&] { EXPECT_EQ(rounds.sync(kFd), 0); });
  first_runs.WaitForNotification();
  std::vector<std::thread> late;
  late.reserve(4);
  std::atomic<int> asked{0};
  for (int i = 0; i < 4; ++i) {
    late.emplace_back([&] {
      asked.fetch_add(1);
      EXPECT_EQ(rounds.sync(kFd), 0);
      EXPECT_GE(calls.load(), 2);
    });
  }
  while (asked.load() < 4) std::this_thread::yield();
  first_may_end.Notify();
  first.join();
  for (std::thread& thread : late) thread.join();
  EXPECT_LE(calls.load(), 5);
}

// The kernel tells one of two concurrent callers; the other must hear it too.
TEST(SyncRounds, AFailureReachesThoseWhoWaited) {
  absl::Notification first_runs;
  absl::Notification first_may_end;
  std::atomic<int> calls{0};
  SyscallHooks hooks;
  hooks.fdatasync = [&](int) {
    if (calls.fetch_add(1) != 0) return 0;
    first_runs.Notify();
    first_may_end.WaitForNotification();
    errno = EIO;
    return -1;
  };
  const ScopedSyscallHooks scope(&hooks);
  SyncRounds rounds;
  std::thread first([&] { EXPECT_EQ(rounds.sync(kFd), EIO); });
  first_runs.WaitForNotification();
  std::thread second([&] { EXPECT_EQ(rounds.sync(kFd), EIO); });
  first_may_end.Notify();
  first.join();
  second.join();
  EXPECT_EQ(calls.load(), 1);
}

}  // namespace
}  // namespace spindle

// A device in a process that was forked off: refused, and left alone.
#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "engine/block_device.h"
#include "gtest/gtest.h"
#include "tests/engine/device_fixture.h"

namespace spindle {
namespace {

using testing::Buffer;
using testing::Buffers;
using testing::DeviceFixture;
using CancelResult = AioHandle::CancelResult;

// Runs `body` in a forked process.  It returns what went wrong, or nothing;
// where it hangs, the alarm ends it.
void expect_in_child(const std::function<std::string()>& body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);
    // The detector's own lock may have been held by a thread of the parent.
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    const std::string wrong = body();
    if (!wrong.empty()) dprintf(STDERR_FILENO, "child: %s\n", wrong.c_str());
    _exit(wrong.empty() ? 0 : 1);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  EXPECT_FALSE(WIFSIGNALED(status)) << "signal " << WTERMSIG(status);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// The driver saw nothing in this process: neither data nor a flush.
std::string untouched(const DeviceFixture& fixture) {
  if (!fixture.driver->transfers().empty()) return "the image was touched";
  if (fixture.driver->transfer_count() > 0) return "touched in place";
  if (fixture.driver->flush_count() > 0) return "the image was flushed";
  if (fixture.driver->content({0, 4096}) != std::string(4096, '\0'))
    return "the image was changed";
  return "";
}

// Requests 0 to `count` have been refused, in whatever order, without anybody
// having to wait for it.
std::string refused(DeviceFixture* fixture, size_t count) {
  std::vector<Completion> out(count + 1);
  const size_t reaped =
      fixture->device->completion_queue().reap(absl::MakeSpan(out));
  if (reaped != count) return absl::StrCat(reaped, " completions");
  std::vector<bool> seen(count, false);
  for (size_t i = 0; i < count; ++i) {
    if (!absl::IsUnavailable(out[i].status) || out[i].status.message().empty())
      return absl::StrCat("completed with ", out[i].status.ToString());
    if (out[i].user_data >= count || seen[out[i].user_data])
      return absl::StrCat("completed twice: ", out[i].user_data);
    seen[out[i].user_data] = true;
  }
  return "";
}

TEST(Fork, ChildIsRefusedRequestsOfEachKind) {
  DeviceFixture fixture;
  BlockDevice& device = *fixture.device;
  Buffer sector(512);
  expect_in_child([&]() -> std::string {
    const std::vector<AioHandle> handles = {
        device.aio_readv(Sector(0), sector.vector(), 0),
        device.aio_writev(Sector(0), sector.vector(), 1),
        device.aio_pwritev(7, sector.vector(), 2, {.fua = true}),
        device.aio_flush(3),
        device.aio_discard({0, 4096}, 4),
        device.aio_write_zeroes({0, 4096}, {}, 5)};
    for (const AioHandle& handle : handles) {
      if (!handle.done()) return "a handle is not done";
    }
    const std::string wrong = refused(&fixture, handles.size());
    return wrong.empty() ? untouched(fixture) : wrong;
  });
}

TEST(Fork, ChildsCallbacksRunInReap) {
  DeviceFixture fixture;
  Buffer sector(512);
  expect_in_child([&]() -> std::string {
    int ran = 0;
    const auto count_refusal = [&ran](const absl::Status& status) {
      if (absl::IsUnavailable(status)) ++ran;
    };
    fixture.device->aio_writev(Sector(0), sector.vector(), count_refusal);
    fixture.device->aio_block_status(
        {0, 512}, BlockStatusScope::kThisLayer,
        [&](const absl::StatusOr<BlockStatus>& result) {
          count_refusal(result.status());
        });
    if (ran != 0) return "a callback ran inside the submitting call";
    fixture.device->reap();
    if (ran != 2) return absl::StrCat(ran, " callbacks");
    return untouched(fixture);
  });
}

// What waits for a plug or a limit is refused in its turn, and drain() does
// not wait for it for ever.
TEST(Fork, ChildIsRefusedBehindAPlugAndALimit) {
  DeviceFixture fixture({.max_in_flight = 2});
  Buffers buffers(8, 512);
  expect_in_child([&]() -> std::string {
    fixture.device->plug();
    for (size_t i = 0; i < 8; ++i)
      fixture.device->aio_writev(Sector(i), buffers[i], i);
    fixture.device->unplug();
    const absl::Status drained = fixture.device->drain();
    if (!drained.ok()) return drained.ToString();
    const std::string wrong = refused(&fixture, 8);
    return wrong.empty() ? untouched(fixture) : wrong;
  });
}

TEST(Fork, ChildRunsNothingInPlaceOrSynchronously) {
  DeviceFixture fixture({.run_in_place = true});
  BlockDevice& device = *fixture.device;
  Buffer sector(512, 'c');
  device.plug();
  device.aio_discard({0, 4096}, 0);
  expect_in_child([&]() -> std::string {
    device.aio_writev(Sector(0), sector.vector(), 1);
    device.unplug();
    const std::string wrong = refused(&fixture, 2);
    if (!wrong.empty()) return wrong;
    for (const absl::Status& status :
         {device.read(sector.vector(), Sector(0)),
          device.write(sector.vector(), Sector(0)), device.flush(),
          device.set_length(512), device.reopen({}), device.close()}) {
      if (!absl::IsUnavailable(status)) return status.ToString();
    }
    return untouched(fixture);
  });
  device.unplug();
  fixture.wait(1);
}

TEST(Fork, ChildNeedNotWaitForWhatRanInTheParent) {
  DeviceFixture fixture({.max_workers = 1});
  if (!fixture.has_threads())
    GTEST_SKIP() << "needs a request that runs meanwhile";
  fixture.driver->close_gate();
  Buffer sector(512);
  fixture.device->aio_writev(Sector(0), sector.vector(), 0);
  fixture.driver->wait_for_waiting(1);
  expect_in_child([&]() -> std::string {
    if (!fixture.device->drain().ok()) return "no drain";
    fixture.device.reset();
    return "";
  });
  fixture.driver->open_gate();
  fixture.wait(1);
}

TEST(Fork, ChildMayDestroyItsCopy) {
  DeviceFixture fixture({}, 3);
  Buffer sector(512);
  expect_in_child([&]() -> std::string {
    fixture.device->aio_writev(Sector(0), sector.vector(), 0);
    fixture.device.reset();
    fixture.executor.reset();
    return fixture.driver->transfers().empty() ? "" : "the image was touched";
  });
}

TEST(Fork, ParentGoesOn) {
  DeviceFixture fixture;
  Buffer sector(512, 'p');
  // Also what was plugged in both.
  fixture.device->plug();
  fixture.device->aio_writev(Sector(0), sector.vector(), 0);
  expect_in_child([&] {
    fixture.device->unplug();
    return refused(&fixture, 1);
  });
  fixture.device->unplug();
  EXPECT_TRUE(fixture.wait(1)[0].status.ok());
  EXPECT_EQ(fixture.driver->content({0, 512}), sector.text);
}

// A child can withdraw its copy of what was queued; that of the parent runs.
TEST(Fork, ChildsCancelIsNoneOfTheParents) {
  DeviceFixture fixture({.max_workers = 1});
  if (!fixture.has_threads())
    GTEST_SKIP() << "needs a request that runs meanwhile";
  fixture.driver->close_gate();
  Buffers buffers(2, 512);
  AioHandle runs = fixture.device->aio_writev(Sector(0), buffers[0], 0);
  fixture.driver->wait_for_waiting(1);
  AioHandle queued = fixture.device->aio_writev(Sector(1), buffers[1], 1);
  expect_in_child([&]() -> std::string {
    if (runs.cancel() != CancelResult::kRunning) return "withdrew what runs";
    if (queued.cancel() != CancelResult::kWithdrawn) return "not withdrawn";
    Completion cancelled;
    if (fixture.device->reap(absl::MakeSpan(&cancelled, 1)) != 1)
      return "no completion";
    return absl::IsCancelled(cancelled.status) ? "" : "not cancelled";
  });
  EXPECT_FALSE(queued.done());
  fixture.driver->open_gate();
  for (const Completion& each : fixture.wait(2)) EXPECT_TRUE(each.status.ok());
}

}  // namespace
}  // namespace spindle

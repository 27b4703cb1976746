#include "benchmarks/loops.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "engine/errors.h"
#include "tests/support/qemu_tools.h"

namespace spindle::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;

double per_second(uint64_t requests, Clock::time_point begin) {
  return static_cast<double>(requests) /
         std::chrono::duration<double>(Clock::now() - begin).count();
}

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<uint8_t, FreeDeleter>;

Buffer make_buffer(size_t bytes) {
  auto* const memory = static_cast<uint8_t*>(std::aligned_alloc(4096, bytes));
  // Not zeroes: nobody shall make less of a write.
  std::memset(memory, 0x5a, bytes);
  return Buffer(memory);
}

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, bool writes)
      : fd_(::open(path.c_str(), (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC)) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

bool transfer_loop(int fd, const Workload& work, const HostPlaces& places,
                   uint64_t first, uint64_t stride) {
  const Buffer buffer = make_buffer(work.request_bytes);
  const iovec segment{buffer.get(), work.request_bytes};
  for (uint64_t i = first; i < work.requests; i += stride) {
    const auto offset = static_cast<off_t>(places.of(work.offset(i)));
    const ssize_t bytes = work.writes ? ::pwritev(fd, &segment, 1, offset)
                                      : ::preadv(fd, &segment, 1, offset);
    if (bytes != work.request_bytes) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<double> bare_transfers(const std::string& path,
                                      const Workload& work, size_t threads,
                                      const HostPlaces& places) {
  const FileDescriptor file(path, work.writes);
  if (file.get() < 0)
    return errno_status(errno, absl::StrCat("open of ", path));
  std::atomic<bool> good{true};
  std::vector<std::thread> others;
  const Clock::time_point begin = Clock::now();
  for (size_t i = 1; i < threads; ++i) {
    others.emplace_back([&, i] {
      good = transfer_loop(file.get(), work, places, i, threads) && good;
    });
  }
  good = transfer_loop(file.get(), work, places, 0, threads) && good;
  for (std::thread& other : others) other.join();
  const double result = per_second(work.requests, begin);
  // Who writes next finds clean pages, as after the others, which close.
  if (work.writes && ::fdatasync(file.get()) != 0) good = false;
  if (!good)
    return absl::InternalError(absl::StrCat("short transfer of ", path));
  return result;
}

absl::StatusOr<double> driver_reads(BlockDriver& driver, const Workload& work) {
  const Buffer buffer = make_buffer(work.request_bytes);
  const IoVector qiov(buffer.get(), work.request_bytes);
  const Clock::time_point begin = Clock::now();
  for (uint64_t i = 0; i < work.requests; ++i) {
    absl::Status status =
        driver.read(qiov, Sector::from_byte_offset(work.offset(i)));
    if (!status.ok()) return status;
  }
  return per_second(work.requests, begin);
}

absl::StatusOr<double> device_reads(BlockDevice& device, const Workload& work) {
  const Buffer buffer = make_buffer(work.request_bytes);
  const IoVector qiov(buffer.get(), work.request_bytes);
  const Clock::time_point begin = Clock::now();
  for (uint64_t i = 0; i < work.requests; ++i) {
    absl::Status status =
        device.read(qiov, Sector::from_byte_offset(work.offset(i)));
    if (!status.ok()) return status;
  }
  return per_second(work.requests, begin);
}

absl::StatusOr<double> aio_requests(BlockDevice& device, const Workload& work,
                                    size_t depth) {
  const Buffer memory = make_buffer(depth * work.request_bytes);
  std::vector<IoVector> buffers;
  for (size_t slot = 0; slot < depth; ++slot) {
    buffers.emplace_back(memory.get() + slot * work.request_bytes,
                         work.request_bytes);
  }
  uint64_t next = 0, done = 0;
  const auto submit = [&](size_t slot) {
    const Sector sector = Sector::from_byte_offset(work.offset(next++));
    if (work.writes) {
      device.aio_writev(sector, buffers[slot], slot);
    } else {
      device.aio_readv(sector, buffers[slot], slot);
    }
  };
  std::array<Completion, 64> completions;
  const size_t most = std::min(depth, completions.size());
  CompletionQueue& queue = device.completion_queue();
  absl::Status failed;
  const Clock::time_point begin = Clock::now();
  device.plug();
  for (size_t slot = 0; slot < depth && next < work.requests; ++slot)
    submit(slot);
  device.unplug();
  while (done < next) {
    const size_t count = queue.wait(1, absl::InfiniteDuration(),
                                    absl::MakeSpan(completions.data(), most));
    done += count;
    device.plug();
    for (size_t i = 0; i < count; ++i) {
      if (!completions[i].status.ok()) failed = completions[i].status;
      if (next < work.requests && failed.ok()) submit(completions[i].user_data);
    }
    device.unplug();
  }
  const double result = per_second(done, begin);
  if (!failed.ok()) return failed;
  return result;
}

namespace {

// What the callbacks of one run share.
struct CallbackRun {
  CallbackRun(BlockDevice* on, const Workload* what) : device(on), work(what) {}

  BlockDevice* const device;
  const Workload* const work;
  std::vector<IoVector> buffers;
  std::atomic<uint64_t> next{0};
  std::atomic<uint64_t> under_way{0};
  std::atomic<bool> failed{false};
  absl::Notification over;

  // Submits the next request, if there is one, whose callback does the same.
  void submit(size_t slot) {
    const uint64_t i = next.fetch_add(1, std::memory_order_relaxed);
    if (i >= work->requests || failed.load(std::memory_order_relaxed)) {
      if (under_way.fetch_sub(1, std::memory_order_acq_rel) == 1) over.Notify();
      return;
    }
    const Sector sector = Sector::from_byte_offset(work->offset(i));
    const auto go_on = [this, slot](const absl::Status& status) {
      if (!status.ok()) failed.store(true, std::memory_order_relaxed);
      submit(slot);
    };
    if (work->writes) {
      device->aio_writev(sector, buffers[slot], go_on);
    } else {
      device->aio_readv(sector, buffers[slot], go_on);
    }
  }
};

}  // namespace

absl::StatusOr<double> callback_requests(BlockDevice& device,
                                         const Workload& work, size_t depth) {
  const Buffer memory = make_buffer(depth * work.request_bytes);
  CallbackRun run(&device, &work);
  for (size_t slot = 0; slot < depth; ++slot) {
    run.buffers.emplace_back(memory.get() + slot * work.request_bytes,
                             work.request_bytes);
  }
  run.under_way.store(depth);
  const Clock::time_point begin = Clock::now();
  device.plug();
  for (size_t slot = 0; slot < depth; ++slot) run.submit(slot);
  device.unplug();
  // Where there are no threads, this one does the work.
  do {
    device.reap();
  } while (!run.over.WaitForNotificationWithTimeout(absl::Milliseconds(1)));
  const double result = per_second(work.requests, begin);
  if (run.failed.load()) return absl::InternalError("a request failed");
  return result;
}

absl::StatusOr<double> qemu_img_bench(const QemuBench& bench,
                                      const Workload& work) {
  std::vector<std::string> command = {
      "qemu-img", "bench",
      "-f",       bench.format,
      "-i",       bench.engine,
      "-t",       bench.engine == "native" ? "none" : "writeback",
      "-c",       absl::StrCat(work.requests),
      "-d",       absl::StrCat(bench.depth),
      "-s",       absl::StrCat(work.request_bytes),
      "-S",       absl::StrCat(work.step_bytes)};
  if (work.writes) command.insert(command.end(), {"-w", "--pattern=90"});
  command.push_back(bench.path);
  const auto output = testing::run_tool_ok(command);
  if (!output.ok()) return output.status();
  constexpr absl::string_view kBefore = "Run completed in ";
  const size_t at = output->find(std::string(kBefore));
  double seconds = 0;
  if (at == std::string::npos ||
      !absl::SimpleAtod(output->substr(at + kBefore.size(),
                                       output->find(' ', at + kBefore.size()) -
                                           at - kBefore.size()),
                        &seconds) ||
      seconds <= 0) {
    return absl::InternalError(
        absl::StrCat("qemu-img bench printed: ", *output));
  }
  return static_cast<double>(work.requests) / seconds;
}

}  // namespace spindle::benchmarks

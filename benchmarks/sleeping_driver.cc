#include "benchmarks/sleeping_driver.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"

namespace spindle::benchmarks {

std::shared_ptr<SleepingDriver> SleepingDriver::create(
    uint64_t capacity_bytes) {
  void* memory = ::mmap(nullptr, capacity_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  return std::shared_ptr<SleepingDriver>(
      new SleepingDriver(static_cast<uint8_t*>(memory), capacity_bytes));
}

SleepingDriver::SleepingDriver(uint8_t* memory, uint64_t capacity_bytes)
    : memory_(memory), capacity_bytes_(capacity_bytes) {}

SleepingDriver::~SleepingDriver() { ::munmap(memory_, capacity_bytes_); }

void SleepingDriver::sleep() const {
  const int64_t delay = delay_ns_.load(std::memory_order_relaxed);
  if (delay == 0) return;
  timespec left{.tv_sec = static_cast<time_t>(delay / 1'000'000'000),
                .tv_nsec = static_cast<long>(delay % 1'000'000'000)};
  while (::clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
  }
}

void SleepingDriver::grow_to(uint64_t length_bytes) {
  uint64_t length = length_.load();
  while (length < length_bytes &&
         !length_.compare_exchange_weak(length, length_bytes)) {
  }
}

Capabilities SleepingDriver::capabilities() const {
  return {Capability::kGrows, Capability::kSetLength, Capability::kDiscard,
          Capability::kWriteZeroes, Capability::kWriteZeroesMayUnmap};
}

absl::Status SleepingDriver::read(const IoVector& qiov, Sector sector) {
  sleep();
  // Memory beyond the end is zero: it was never written, or was dropped.
  uint64_t offset = sector.byte_offset();
  if (offset + qiov.length_bytes() > capacity_bytes_)
    return absl::OutOfRangeError("read");
  qiov.copy_from(0, memory_ + offset, qiov.length_bytes());
  return absl::OkStatus();
}

absl::Status SleepingDriver::write(const IoVector& qiov, Sector sector) {
  sleep();
  const uint64_t offset = sector.byte_offset();
  if (offset + qiov.length_bytes() > capacity_bytes_) {
    return errno_status(ENOSPC, "write beyond the memory's capacity");
  }
  qiov.copy_to(0, memory_ + offset, qiov.length_bytes());
  grow_to(offset + qiov.length_bytes());
  return absl::OkStatus();
}

absl::Status SleepingDriver::flush() {
  sleep();
  flush_count_.fetch_add(1);
  return absl::OkStatus();
}

absl::Status SleepingDriver::discard(ByteRange range) {
  return write_zeroes(range, {});
}

absl::Status SleepingDriver::write_zeroes(ByteRange range, WriteZeroesFlags) {
  sleep();
  if (range.end() > capacity_bytes_)
    return errno_status(ENOSPC, "write_zeroes");
  std::memset(memory_ + range.offset, 0, range.length);
  grow_to(range.end());
  return absl::OkStatus();
}

absl::Status SleepingDriver::set_length(uint64_t length_bytes,
                                        SetLengthMode mode) {
  if (length_bytes > capacity_bytes_) return errno_status(ENOSPC, "set_length");
  grow_to(length_bytes);
  if (mode == SetLengthMode::kExact) {
    const uint64_t before = length_.exchange(length_bytes);
    if (before > length_bytes)
      std::memset(memory_ + length_bytes, 0, before - length_bytes);
  }
  return absl::OkStatus();
}

}  // namespace spindle::benchmarks

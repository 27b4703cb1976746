#include "benchmarks/scaling.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "benchmarks/sleeping_driver.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/builtin.h"

namespace spindle::benchmarks {
namespace {

constexpr uint64_t kClusterBytes = 65536;
constexpr uint64_t kRequestBytes = 4096;
constexpr size_t kMostThreads = 16;

// Each thread has clusters of its own, next to each other.
uint64_t guest_offset(size_t thread, uint64_t request,
                      uint64_t clusters_per_thread) {
  const uint64_t cluster =
      thread * clusters_per_thread + request % clusters_per_thread;
  return cluster * kClusterBytes +
         request / clusters_per_thread % 16 * kRequestBytes;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> make_image(
    std::shared_ptr<BlockDriver> file, uint64_t length_bytes) {
  const DriverRegistry& registry = builtin_drivers();
  const ImageFormat* format = registry.find_format("qcow2");
  if (format == nullptr) return absl::InternalError("no qcow2");
  CreateOptions options;
  options.size_bytes = length_bytes;
  absl::Status status = format->create(file, options, {});
  if (!status.ok()) return status;
  return format->open(std::move(file), {}, {});
}

absl::Status fill(BlockDriver& image) {
  std::vector<uint8_t> bytes(1 << 20, 0x5a);
  const IoVector qiov(bytes.data(), bytes.size());
  for (uint64_t offset = 0; offset < image.length_bytes();
       offset += bytes.size()) {
    const absl::Status status =
        image.write(qiov, Sector::from_byte_offset(offset));
    if (!status.ok()) return status;
  }
  return image.flush();
}

}  // namespace

absl::StatusOr<double> measure_scaling(ScalingKind kind, size_t threads,
                                       uint64_t requests_per_thread,
                                       absl::Duration delay) {
  const bool allocates = kind == ScalingKind::kAllocate;
  const uint64_t clusters = allocates ? requests_per_thread : 64;
  const uint64_t length = kMostThreads * clusters * kClusterBytes;
  const auto file = SleepingDriver::create(2 * length + (64 << 20));
  if (file == nullptr) return absl::ResourceExhaustedError("no memory");
  auto image = make_image(file, length);
  if (!image.ok()) return image.status();
  if (!allocates) {
    absl::Status status = fill(**image);
    if (!status.ok()) return status;
  }
  file->set_delay(delay);

  std::atomic<bool> failed{false};
  const auto work = [&](size_t thread) {
    std::vector<uint8_t> bytes(kRequestBytes, static_cast<uint8_t>(thread + 1));
    const IoVector qiov(bytes.data(), bytes.size());
    for (uint64_t i = 0; i < requests_per_thread; ++i) {
      const Sector sector =
          Sector::from_byte_offset(guest_offset(thread, i, clusters));
      const absl::Status status = kind == ScalingKind::kRead
                                      ? (*image)->read(qiov, sector)
                                      : (*image)->write(qiov, sector);
      if (!status.ok()) failed = true;
    }
  };
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (size_t i = 0; i < threads; ++i) others.emplace_back(work, i);
  for (std::thread& other : others) other.join();
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - begin;

  file->set_delay(absl::ZeroDuration());
  absl::Status closed = (*image)->close();
  if (!closed.ok()) return closed;
  if (failed) return absl::InternalError("a request failed");
  return static_cast<double>(threads * requests_per_thread) / elapsed.count();
}

}  // namespace spindle::benchmarks

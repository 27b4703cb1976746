#include "benchmarks/scaling.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/sleeping_driver.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/builtin.h"

namespace spindle::benchmarks {
namespace {

constexpr uint64_t kRequestBytes = 4096;
constexpr size_t kMostThreads = 16;

struct Shape {
  uint64_t cluster_bytes = 65536;
  // Each thread has clusters of its own, next to each other.
  uint64_t clusters_per_thread = 64;
  bool writes = false;
  // Of the image, or of its backing file.
  bool filled = true;
  bool compressed = false;
  bool has_backing = false;

  uint64_t length_bytes() const {
    return kMostThreads * clusters_per_thread * cluster_bytes;
  }
  uint64_t guest_offset(size_t thread, uint64_t request) const {
    const uint64_t cluster =
        thread * clusters_per_thread + request % clusters_per_thread;
    const uint64_t into_cluster = request / clusters_per_thread * kRequestBytes;
    return cluster * cluster_bytes + into_cluster % cluster_bytes;
  }
};

Shape shape_of(ScalingKind kind, uint64_t requests_per_thread) {
  Shape shape;
  switch (kind) {
    case ScalingKind::kRead:
      return shape;
    case ScalingKind::kOverwrite:
      shape.writes = true;
      return shape;
    case ScalingKind::kAllocate:
      shape.writes = true;
      shape.filled = false;
      shape.clusters_per_thread = requests_per_thread;
      return shape;
    case ScalingKind::kCopyOnWrite:
      shape.writes = true;
      shape.has_backing = true;
      shape.clusters_per_thread = requests_per_thread;
      return shape;
    case ScalingKind::kCompressedRead:
      // Small: what is measured is waiting, not inflating.
      shape.cluster_bytes = 4096;
      shape.clusters_per_thread = requests_per_thread;
      shape.compressed = true;
      return shape;
  }
  return shape;
}

absl::Status fill(BlockDriver& image, const Shape& shape) {
  std::vector<uint8_t> bytes(
      shape.compressed ? shape.cluster_bytes : uint64_t{1} << 20, 0x5a);
  const IoVector qiov(bytes.data(), bytes.size());
  for (uint64_t offset = 0; offset < shape.length_bytes();
       offset += bytes.size()) {
    const uint64_t left = shape.length_bytes() - offset;
    const IoVector piece = qiov.slice(0, std::min(left, qiov.length_bytes()));
    const Sector sector = Sector::from_byte_offset(offset);
    const absl::Status status = shape.compressed
                                    ? image.write_compressed(piece, sector)
                                    : image.write(piece, sector);
    if (!status.ok()) return status;
  }
  return image.flush();
}

// An image over disks that do not sleep yet.
struct SleepingImage {
  std::shared_ptr<SleepingDriver> file;
  std::shared_ptr<SleepingDriver> backing_file;  // or null
  std::shared_ptr<BlockDriver> driver;

  void set_delay(absl::Duration delay) const {
    file->set_delay(delay);
    if (backing_file != nullptr) backing_file->set_delay(delay);
  }
};

absl::StatusOr<SleepingImage> make_image(const Shape& shape) {
  const ImageFormat* const format = builtin_drivers().find_format("qcow2");
  if (format == nullptr) return absl::InternalError("no qcow2");
  SleepingImage image;
  // The guest's data and the tables.
  image.file = SleepingDriver::create(shape.length_bytes() + (64 << 20));
  if (image.file == nullptr) return absl::ResourceExhaustedError("no memory");
  CreateOptions options;
  options.size_bytes = shape.length_bytes();
  options.options["cluster_size"] = absl::StrCat(shape.cluster_bytes);
  OpenContext context;
  if (shape.has_backing) {
    image.backing_file = SleepingDriver::create(shape.length_bytes());
    if (image.backing_file == nullptr)
      return absl::ResourceExhaustedError("no memory");
    absl::Status filled = fill(*image.backing_file, shape);
    if (!filled.ok()) return filled;
    options.backing_filename = "backing";
    options.backing_format = "raw";
    options.unsafe_backing = true;
    context.open_child = [&](const ChildRequest&) {
      return image.backing_file;
    };
  }
  absl::Status status = format->create(image.file, options, {});
  if (!status.ok()) return status;
  auto driver = format->open(image.file, {}, context);
  if (!driver.ok()) return driver.status();
  image.driver = *std::move(driver);
  if (shape.filled && !shape.has_backing) {
    status = fill(*image.driver, shape);
    if (!status.ok()) return status;
  }
  return image;
}

// Each thread makes its requests, each followed by a flush if `flushes`; the
// seconds that all of it took.
absl::StatusOr<double> run_threads(const SleepingImage& image,
                                   const Shape& shape, size_t threads,
                                   uint64_t requests, bool flushes) {
  std::atomic<bool> failed{false};
  const auto work = [&](size_t thread) {
    std::vector<uint8_t> bytes(kRequestBytes, static_cast<uint8_t>(thread + 1));
    const IoVector qiov(bytes.data(), bytes.size());
    for (uint64_t i = 0; i < requests; ++i) {
      const Sector sector =
          Sector::from_byte_offset(shape.guest_offset(thread, i));
      absl::Status status = shape.writes ? image.driver->write(qiov, sector)
                                         : image.driver->read(qiov, sector);
      if (status.ok() && flushes) status = image.driver->flush();
      if (!status.ok()) failed = true;
    }
  };
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (size_t i = 0; i < threads; ++i) others.emplace_back(work, i);
  for (std::thread& other : others) other.join();
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - begin;
  image.set_delay(absl::ZeroDuration());
  absl::Status closed = image.driver->close();
  if (!closed.ok()) return closed;
  if (failed) return absl::InternalError("a request failed");
  return elapsed.count();
}

}  // namespace

absl::StatusOr<double> measure_scaling(ScalingKind kind, size_t threads,
                                       uint64_t requests_per_thread,
                                       absl::Duration delay) {
  const Shape shape = shape_of(kind, requests_per_thread);
  const absl::StatusOr<SleepingImage> image = make_image(shape);
  if (!image.ok()) return image.status();
  image->set_delay(delay);
  const absl::StatusOr<double> seconds = run_threads(
      *image, shape, threads, requests_per_thread, /*flushes=*/false);
  if (!seconds.ok()) return seconds.status();
  return static_cast<double>(threads * requests_per_thread) / *seconds;
}

absl::StatusOr<double> syncs_per_flush(size_t flushers, bool allocates,
                                       uint64_t flushes_per_thread,
                                       absl::Duration delay) {
  const Shape shape =
      shape_of(allocates ? ScalingKind::kAllocate : ScalingKind::kOverwrite,
               flushes_per_thread);
  const absl::StatusOr<SleepingImage> image = make_image(shape);
  if (!image.ok()) return image.status();
  image->set_delay(delay);
  const uint64_t before = image->file->flush_count();
  const absl::StatusOr<double> seconds = run_threads(
      *image, shape, flushers, flushes_per_thread, /*flushes=*/true);
  if (!seconds.ok()) return seconds.status();
  return static_cast<double>(image->file->flush_count() - before) /
         static_cast<double>(flushers * flushes_per_thread);
}

}  // namespace spindle::benchmarks

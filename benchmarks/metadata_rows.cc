#include "benchmarks/metadata_rows.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/bench_images.h"
#include "engine/byte_order.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"

namespace spindle::benchmarks {
namespace {

constexpr uint64_t kClusterBytes = 65536;

// How often a second `work` could be done.
template <typename Work>
absl::StatusOr<double> times_per_second(Work work) {
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = work();
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - begin;
  if (!status.ok()) return status;
  return 1 / elapsed.count();
}

absl::Status check_ours(const testing::ImageFile& image, Executor* executor) {
  OpenOptions options;
  options.read_only = options.for_check = true;
  const ImageOpener opener(builtin_drivers(), {});
  auto driver = opener.open(image.path, image.format, options);
  if (!driver.ok()) return driver.status();
  CheckOptions check;
  check.executor = executor;
  const absl::StatusOr<CheckResult> result = (*driver)->check(check);
  if (!result.ok()) return result.status();
  if (result->allocated_clusters == 0 || result->corruptions != 0)
    return absl::InternalError("the check did not find the clusters");
  return (*driver)->close();
}

// Reads the L1 table, whose place the header says, as opening must.
absl::Status read_l1(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno_status(errno, absl::StrCat("open of ", path));
  uint8_t head[48];
  bool good = ::pread(fd, head, sizeof(head), 0) == sizeof(head);
  const uint64_t entries = load_big32(&head[36]);
  std::vector<uint8_t> bytes(entries * 8);
  good = good && ::pread(fd, bytes.data(), bytes.size(),
                         static_cast<off_t>(load_big64(&head[40]))) ==
                     static_cast<ssize_t>(bytes.size());
  ::close(fd);
  std::vector<uint64_t> table(entries);
  for (uint64_t i = 0; i < entries; ++i) table[i] = load_big64(&bytes[i * 8]);
  return good && !table.empty() ? absl::OkStatus()
                                : absl::InternalError("no L1 table");
}

}  // namespace

absl::Status add_check_row(const BenchContext& context) {
  const BenchSettings& settings = *context.settings;
  const uint64_t clusters = settings.smoke ? 1000 : 1'000'000;
  const FreshImage image(settings.tmpfs, clusters * kClusterBytes);
  absl::Status status = image.make("preallocation=metadata");
  if (!status.ok()) return status;
  const auto medians = measure_in_turns(
      {{"ours",
        [&] {
          return times_per_second(
              [&] { return check_ours(image.file(), context.executor); });
        }},
       {"qemu-img",
        [&] {
          return times_per_second([&] {
            return testing::run_tool_ok(
                       {"qemu-img", "check", "-f", "qcow2", image.file().path})
                .status();
          });
        }}},
      settings.rounds);
  if (!medians.ok()) return medians.status();
  RatioRow row{"checks of a million clusters, a second", medians->at("ours"),
               medians->at("qemu-img"), "qemu-img check", 1.0};
  row.unit = 1;
  context.table->add(std::move(row));
  return absl::OkStatus();
}

absl::Status add_open_row(const BenchContext& context) {
  const BenchSettings& settings = *context.settings;
  const FreshImage image(settings.tmpfs,
                         uint64_t{1} << (settings.smoke ? 40 : 50));
  absl::Status status = image.make();
  if (!status.ok()) return status;
  const auto medians = measure_in_turns(
      {{"ours",
        [&] {
          return times_per_second([&] {
            auto driver = open_driver(image.file(), /*read_only=*/true);
            return driver.ok() ? (*driver)->close() : driver.status();
          });
        }},
       {"L1 table",
        [&] {
          return times_per_second([&] { return read_l1(image.file().path); });
        }}},
      settings.rounds);
  if (!medians.ok()) return medians.status();
  RatioRow row{"opening a petabyte, a second", medians->at("ours"),
               medians->at("L1 table"), "reading its L1", 0.5};
  row.unit = 1;
  context.table->add(std::move(row));
  return absl::OkStatus();
}

}  // namespace spindle::benchmarks

#include "tools/bench_sweep.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "tools/picture.h"
#include "tools/progress_bar.h"
#include "tools/qemu_bench.h"
#include "tools/sweep_picture.h"

namespace spindle {
namespace {

// Part of the requests of a row that run before the clock starts: the image's
// metadata is cached and the pool awake by then.
constexpr uint64_t kWarmUpDivisor = 10;

double microseconds(absl::Duration duration) {
  return absl::ToDoubleMicroseconds(duration);
}

void print_heading(const BenchTarget& target, const SweepOptions& options) {
  std::printf("%llu %s %s requests of %zu bytes for each row%s\n",
              static_cast<unsigned long long>(options.bench.request_count),
              options.bench.random ? "random" : "sequential",
              options.bench.write ? "write" : "read",
              options.bench.request_bytes,
              target.run_in_place ? "; they may run where they stand" : "");
  std::printf("%7s %6s %12s %10s %10s %10s %12s\n", "threads", "depth", "ops/s",
              "p50 us", "p99 us", "p99.9 us", "CPU us/op");
}

void print_row(size_t width, size_t depth, const BenchResult& result) {
  std::printf("%7zu %6zu %12.0f %10.1f %10.1f %10.1f %12.2f\n", width, depth,
              result.operations_per_second(),
              microseconds(result.latency.percentile(50)),
              microseconds(result.latency.percentile(99)),
              microseconds(result.latency.percentile(99.9)),
              result.cpu_microseconds_per_operation());
  std::fflush(stdout);
}

absl::StatusOr<BenchResult> measure(const BenchTarget& target,
                                    const BenchOptions& options) {
  absl::StatusOr<std::unique_ptr<BenchSession>> session =
      BenchSession::open(target);
  if (!session.ok()) return session.status();
  BenchOptions warm_up = options;
  warm_up.request_count = options.request_count / kWarmUpDivisor;
  warm_up.progress = nullptr;
  absl::StatusOr<BenchResult> result = run_bench((*session)->device(), warm_up);
  if (result.ok()) result = run_bench((*session)->device(), options);
  const absl::Status closed = (*session)->close();
  if (!result.ok() || closed.ok()) return result;
  return closed;
}

// What qemu-img delivers with each depth; if it cannot, the name says why, and
// if it is not there, it is empty.
SweepLine measure_qemu(const BenchTarget& target, const SweepOptions& options) {
  SweepLine line;
  const std::string program = find_qemu_img();
  if (program.empty()) return line;
  line.name = "qemu-img";
  BenchOptions bench = options.bench;
  for (const size_t depth : options.depths) {
    bench.depth = depth;
    const absl::StatusOr<double> result =
        run_qemu_bench(program, target, bench);
    if (!result.ok()) {
      return {absl::StrCat("(not measured: ", result.status().message(), ")"),
              {}};
    }
    line.points.push_back({depth, *result});
  }
  return line;
}

absl::Status draw(const BenchTarget& target, const SweepOptions& options,
                  std::vector<SweepLine> lines) {
  SweepLine qemu = measure_qemu(target, options);
  if (!qemu.name.empty()) lines.push_back(std::move(qemu));
  const std::string title = absl::StrCat(
      target.image.name, ": ", options.bench.random ? "random " : "sequential ",
      options.bench.write ? "writes" : "reads", " of ",
      options.bench.request_bytes, " bytes");
  return draw_sweep(title, lines).save(options.picture);
}

}  // namespace

absl::Status run_sweep(const BenchTarget& target, const SweepOptions& options) {
  if (!options.picture.empty()) {
    absl::Status status = Picture::check_path(options.picture);
    if (!status.ok()) return status;
  }
  print_heading(target, options);
  ProgressBar bar;
  const double rows =
      static_cast<double>(options.widths.size() * options.depths.size());
  double rows_done = 0;
  std::vector<SweepLine> lines;
  for (size_t width : options.widths) {
    lines.push_back(
        {absl::StrCat(width, width == 1 ? " thread" : " threads"), {}});
    for (size_t depth : options.depths) {
      BenchTarget row_target = target;
      row_target.threads = width;
      BenchOptions bench = options.bench;
      bench.depth = depth;
      bench.measure_latency = true;
      bench.progress = [&](uint64_t completed) {
        const double part =
            static_cast<double>(completed) /
            static_cast<double>(std::max<uint64_t>(bench.request_count, 1));
        bar.update((rows_done + part) / rows,
                   absl::StrCat(width, " threads, depth ", depth));
      };
      const absl::StatusOr<BenchResult> result = measure(row_target, bench);
      bar.erase();
      if (!result.ok()) return result.status();
      print_row(width, depth, *result);
      // Without a request there is no rate.
      if (result->operations_per_second() > 0)
        lines.back().points.push_back({depth, result->operations_per_second()});
      ++rows_done;
    }
  }
  if (options.picture.empty()) return absl::OkStatus();
  return draw(target, options, std::move(lines));
}

}  // namespace spindle

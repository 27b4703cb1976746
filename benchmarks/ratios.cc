// ratios: ours, QEMU's tools and bare loops in turns, on the same image in the
// page cache, with the same offsets and sizes; prints a table and fails
// below a target.  Means something only in an optimised build, and refuses to
// run in another.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "benchmarks/bench_images.h"
#include "benchmarks/bench_settings.h"
#include "benchmarks/encryption_rows.h"
#include "benchmarks/loops.h"
#include "benchmarks/metadata_rows.h"
#include "benchmarks/offsets.h"
#include "benchmarks/ratio_table.h"
#include "benchmarks/scaling.h"
#include "benchmarks/tool_rows.h"
#include "benchmarks/write_rows.h"
#include "threadpool/default_executor.h"

namespace spindle::benchmarks {
namespace {

class Ratios {
 public:
  Ratios(const BenchSettings& settings, Executor* executor)
      : settings_(settings), executor_(executor) {}

  absl::Status run() {
    absl::Status status;
    for (const bool tmpfs : {true, false}) {
      if (status.ok()) status = rows_on(tmpfs);
    }
    const BenchContext context = this->context();
    if (status.ok() && wanted("first writes"))
      status = add_first_write_rows(context);
    if (status.ok() && wanted("scaling")) status = scaling_rows();
    if (status.ok() && wanted("syncs")) status = add_sync_rows(context);
    if (status.ok() && wanted("check")) status = add_check_row(context);
    if (status.ok() && wanted("open")) status = add_open_row(context);
    if (status.ok() && wanted("encryption"))
      status = add_encryption_rows(context);
    if (status.ok() && wanted("tools") && !settings_.spindle_img.empty())
      status = add_tool_rows(context, settings_.spindle_img);
    return status;
  }
  const RatioTable& table() const { return table_; }

 private:
  bool wanted(const std::string& group) const { return settings_.wants(group); }
  BenchContext context() { return {&settings_, executor_, &table_}; }
  Workload workload(uint64_t requests) const {
    return scattered_reads(settings_.image_bytes(),
                           settings_.requests(requests));
  }

  // Those that need images that are full.
  absl::Status rows_on(bool tmpfs) {
    const std::string where = tmpfs ? "tmpfs" : "ext4";
    const bool aio = wanted(where + " aio"), sync = wanted(where + " sync");
    const bool overwrites = wanted(where + " overwrites");
    const bool flushes = !tmpfs && wanted(where + " flushes");
    if (!aio && !sync && !overwrites && !flushes) return absl::OkStatus();
    const FilledImages images(settings_.directory(tmpfs),
                              settings_.image_bytes());
    absl::Status status = images.make();
    for (const size_t depth : {1u, 32u}) {
      if (aio && status.ok()) status = aio_rows(images, where, depth);
    }
    if (sync && status.ok()) status = sync_rows(images, where);
    if (overwrites && status.ok())
      status = add_overwrite_rows(context(), images, tmpfs);
    if (flushes && status.ok()) status = add_flush_rows(context(), images);
    return status;
  }

  absl::Status aio_rows(const FilledImages& images, const std::string& where,
                        size_t depth) {
    const Workload work = workload(depth == 1 ? 150'000 : 400'000);
    auto in_place =
        OpenDevice::open(images.qcow2(), executor_,
                         {.run_in_place = true, .poll_us = settings_.poll_us});
    if (!in_place.ok()) return in_place.status();
    auto pool =
        OpenDevice::open(images.qcow2(), executor_,
                         {.run_in_place = false, .poll_us = settings_.poll_us});
    if (!pool.ok()) return pool.status();
    const std::vector<std::string> engines = {"threads", "native", "io_uring"};
    std::vector<Contestant> contestants = {
        {"in place", [&] { return aio_requests(***in_place, work, depth); }},
        {"pool", [&] { return aio_requests(***pool, work, depth); }},
        {"2 x bare preadv",
         [&] { return bare_transfers(images.qcow2().path, work, 2); }}};
    for (const std::string& engine : engines) {
      Workload theirs = work;
      // On ext4 reads that bypass the page cache go to the disk: fewer will do.
      if (engine == "native" && where != "tmpfs") {
        theirs.requests = work.requests / 20 + 1;
      }
      const QemuBench bench{images.qcow2().path, "qcow2", engine, depth};
      contestants.push_back(
          {"qemu " + engine,
           [bench, theirs] { return qemu_img_bench(bench, theirs); }, true});
    }
    std::fprintf(stderr, "%s, depth %zu:\n", where.c_str(), depth);
    const auto medians = measure_in_turns(contestants, settings_.rounds);
    if (!medians.ok()) return medians.status();
    return add_aio_rows(*medians, where, depth, engines);
  }

  absl::Status add_aio_rows(const std::map<std::string, double>& medians,
                            const std::string& where, size_t depth,
                            const std::vector<std::string>& engines) {
    std::string best;
    for (const std::string& engine : engines) {
      const auto found = medians.find("qemu " + engine);
      if (found == medians.end()) continue;
      if (best.empty() || found->second > medians.at(best)) best = found->first;
    }
    if (best.empty())
      return absl::InternalError("no engine of qemu-img bench works here");
    const bool tmpfs = where == "tmpfs";
    const std::string prefix =
        absl::StrCat("aio_readv qcow2 ", where, " depth ", depth);
    const std::string bare = "2 x bare preadv";
    const auto row = [&](const std::string& ours, const std::string& other,
                         std::optional<double> target) {
      table_.add({prefix + ", " + ours, medians.at(ours), medians.at(other),
                  other, target});
    };
    if (depth == 1) {
      row("in place", best, tmpfs ? 2.0 : 1.5);
      row("pool", best, tmpfs ? std::optional<double>(1.2) : std::nullopt);
    } else {
      row("in place", bare, 0.40);
      row("in place", best, std::nullopt);
      row("pool", best, tmpfs ? std::optional<double>(2.0) : std::nullopt);
    }
    return absl::OkStatus();
  }

  absl::Status sync_rows(const FilledImages& images, const std::string& where) {
    const Workload work = workload(400'000);
    auto driver = open_driver(images.raw(), /*read_only=*/true);
    if (!driver.ok()) return driver.status();
    auto device = OpenDevice::open(images.raw(), executor_, {});
    if (!device.ok()) return device.status();
    std::fprintf(stderr, "%s, synchronous:\n", where.c_str());
    const auto medians = measure_in_turns(
        {{"bare preadv",
          [&] { return bare_transfers(images.raw().path, work, 1); }},
         {"raw driver", [&] { return driver_reads(**driver, work); }},
         {"BlockDevice", [&] { return device_reads(***device, work); }}},
        settings_.rounds);
    if (!medians.ok()) return medians.status();
    const double bare = medians->at("bare preadv");
    table_.add({absl::StrCat("read raw ", where, ", driver"),
                medians->at("raw driver"), bare, "bare preadv", 0.95});
    table_.add({absl::StrCat("read raw ", where, ", BlockDevice"),
                medians->at("BlockDevice"), bare, "bare preadv", 0.88});
    return absl::OkStatus();
  }

  absl::Status scaling_rows() {
    constexpr absl::Duration kDelay = absl::Microseconds(200);
    const uint64_t requests = settings_.smoke ? 20 : 1000;  // of a thread
    struct Kind {
      ScalingKind kind;
      const char* name;
      double target;
    };
    for (const Kind& kind :
         {Kind{ScalingKind::kRead, "reads", 14.0},
          Kind{ScalingKind::kOverwrite, "overwrites", 14.0},
          Kind{ScalingKind::kAllocate, "allocating writes", 12.0},
          Kind{ScalingKind::kCopyOnWrite, "copy-on-write", 12.0},
          Kind{ScalingKind::kCompressedRead, "compressed reads", 14.0}}) {
      std::fprintf(stderr, "200 us disk, %s:\n", kind.name);
      const auto medians = measure_in_turns(
          {{"1 thread",
            [&] { return measure_scaling(kind.kind, 1, requests, kDelay); }},
           {"16 threads",
            [&] { return measure_scaling(kind.kind, 16, requests, kDelay); }}},
          settings_.rounds);
      if (!medians.ok()) return medians.status();
      table_.add({absl::StrCat("qcow2 over a 200 us disk, ", kind.name,
                               ", 16 threads"),
                  medians->at("16 threads"), medians->at("1 thread"),
                  "1 thread", kind.target});
    }
    return absl::OkStatus();
  }

  const BenchSettings settings_;
  Executor* const executor_;
  RatioTable table_;
};

const char* environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

BenchSettings default_settings() {
  BenchSettings settings;
  settings.tmpfs = environment("SPINDLE_TMPFS", "/dev/shm");
  settings.ext4 = environment("SPINDLE_EXT4", environment("TMPDIR", "."));
  return settings;
}

int run(const BenchSettings& settings) {
#ifndef NDEBUG
  if (!settings.smoke) {
    std::fprintf(stderr,
                 "ratios: not an optimised build; use bazel run -c opt\n");
    return 2;
  }
#endif
  const std::unique_ptr<Executor> executor = make_executor(
      {.width = settings.width, .name = "ratios", .interleaving_seed = {}});
  Ratios ratios(settings, executor.get());
  const absl::Status status = ratios.run();
  if (!status.ok()) {
    std::fprintf(stderr, "ratios: %s\n", status.ToString().c_str());
    return 2;
  }
  if (settings.smoke) {
    std::printf("ratios: every row was measured; a smoke run prints none\n");
    return ratios.table().empty() ? 1 : 0;
  }
  ratios.table().print();
  return ratios.table().all_pass() ? 0 : 1;
}

}  // namespace
}  // namespace spindle::benchmarks

int main(int argc, char** argv) {
  spindle::benchmarks::BenchSettings settings =
      spindle::benchmarks::default_settings();
  CLI::App app("Measures Spindle against qemu-img bench and bare loops");
  app.add_flag("--smoke", settings.smoke,
               "try every row at a tiny size; check no target");
  app.add_option("--rounds", settings.rounds, "measurements per contestant")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--image-mib", settings.image_mib,
                 "length of the image, a power of two")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--width", settings.width, "width of the pool")
      ->capture_default_str();
  app.add_option("--poll-us", settings.poll_us, "how long the reaper polls")
      ->capture_default_str();
  app.add_option("--tmpfs", settings.tmpfs, "a directory on tmpfs")
      ->capture_default_str();
  app.add_option("--ext4", settings.ext4, "a directory on ext4")
      ->capture_default_str();
  app.add_option("--spindle-img", settings.spindle_img,
                 "the program, for the group \"tools\"");
  app.add_option("--only", settings.only,
                 "only groups whose name has this in it");
  CLI11_PARSE(app, argc, argv);
  if (settings.smoke) {
    settings.rounds = 1;
    settings.image_mib = 16;
  }
  return spindle::benchmarks::run(settings);
}

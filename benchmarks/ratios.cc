// ratios: ours, `qemu-img bench` and bare loops in turns, on the same image in
// the page cache, with the same offsets and sizes; prints a table and fails
// below a target.  Means something only in an optimised build, and refuses to
// run in another.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "benchmarks/loops.h"
#include "benchmarks/offsets.h"
#include "benchmarks/ratio_table.h"
#include "benchmarks/scaling.h"
#include "engine/block_device.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "tests/support/model_disk.h"
#include "tests/support/qemu_tools.h"
#include "threadpool/default_executor.h"

namespace spindle::benchmarks {
namespace {

struct Settings {
  bool smoke = false;
  size_t rounds = 5;
  uint64_t image_mib = 1024;
  size_t width = 16;
  int poll_us = 50;
  std::string tmpfs = "/dev/shm";
  std::string ext4 = ".";
  std::string only;  // a part of the group's name; empty: all groups
};

// Raw and qcow2 with the same content, removed at the end.
class Images {
 public:
  Images(const std::string& directory, uint64_t bytes)
      : stem_(absl::StrCat(directory, "/spindle-ratios.", ::getpid())),
        bytes_(bytes) {}
  ~Images() {
    ::unlink(raw().path.c_str());
    ::unlink(qcow2().path.c_str());
  }
  Images(const Images&) = delete;
  Images& operator=(const Images&) = delete;

  absl::Status make() const {
    std::FILE* file = std::fopen(raw().path.c_str(), "wb");
    if (file == nullptr)
      return absl::InternalError(absl::StrCat("cannot create ", raw().path));
    std::vector<uint8_t> piece(1 << 20);
    bool good = true;
    for (uint64_t offset = 0; offset < bytes_; offset += piece.size()) {
      testing::stamp_content(1, offset, absl::MakeSpan(piece));
      good = std::fwrite(piece.data(), 1, piece.size(), file) == piece.size() &&
             good;
    }
    good = std::fclose(file) == 0 && good;
    if (!good)
      return absl::InternalError(absl::StrCat("cannot write ", raw().path));
    return testing::qemu_convert(raw(), qcow2(), "");
  }
  testing::ImageFile raw() const { return {stem_ + ".raw", "raw"}; }
  testing::ImageFile qcow2() const { return {stem_ + ".qcow2", "qcow2"}; }

 private:
  const std::string stem_;
  const uint64_t bytes_;
};

absl::StatusOr<std::shared_ptr<BlockDriver>> open_driver(
    const testing::ImageFile& image) {
  const ImageOpener opener(builtin_drivers(), {});
  OpenOptions options;
  options.read_only = true;
  return opener.open(image.path, image.format, options);
}

// A device of its own over `image`, with its completion queue.
class OpenDevice {
 public:
  static absl::StatusOr<std::unique_ptr<OpenDevice>> open(
      const testing::ImageFile& image, Executor* executor, bool run_in_place,
      int poll_us) {
    auto driver = open_driver(image);
    if (!driver.ok()) return driver.status();
    auto queue =
        CompletionQueue::create({.poll_limit = absl::Microseconds(poll_us)});
    if (!queue.ok()) return queue.status();
    BlockDeviceOptions options;
    options.name = image.format;
    options.run_in_place = run_in_place;
    options.completion_queue = queue->get();
    auto device =
        BlockDevice::create(*std::move(driver), executor, std::move(options));
    if (!device.ok()) return device.status();
    return std::unique_ptr<OpenDevice>(
        new OpenDevice(*std::move(queue), *std::move(device)));
  }
  BlockDevice& operator*() const { return *device_; }

 private:
  OpenDevice(std::unique_ptr<CompletionQueue> queue,
             std::unique_ptr<BlockDevice> device)
      : queue_(std::move(queue)), device_(std::move(device)) {}
  std::unique_ptr<CompletionQueue> queue_;
  std::unique_ptr<BlockDevice> device_;  // destroyed first
};

class Ratios {
 public:
  Ratios(const Settings& settings, Executor* executor)
      : settings_(settings), executor_(executor) {}

  absl::Status run() {
    for (const bool tmpfs : {true, false}) {
      const std::string where = tmpfs ? "tmpfs" : "ext4";
      const bool aio = wanted(where + " aio"), sync = wanted(where + " sync");
      if (!aio && !sync) continue;
      const Images images(tmpfs ? settings_.tmpfs : settings_.ext4,
                          image_bytes());
      absl::Status status = images.make();
      for (const size_t depth : {1u, 32u}) {
        if (aio && status.ok()) status = aio_rows(images, where, depth);
      }
      if (sync && status.ok()) status = sync_rows(images, where);
      if (!status.ok()) return status;
    }
    return wanted("scaling") ? scaling_rows() : absl::OkStatus();
  }
  const RatioTable& table() const { return table_; }

 private:
  bool wanted(const std::string& group) const {
    return group.find(settings_.only) != std::string::npos;
  }
  uint64_t image_bytes() const { return settings_.image_mib << 20; }
  Workload workload(uint64_t requests) const {
    return scattered_reads(image_bytes(), settings_.smoke ? 200 : requests);
  }

  absl::Status aio_rows(const Images& images, const std::string& where,
                        size_t depth) {
    const Workload work = workload(depth == 1 ? 150'000 : 400'000);
    auto in_place =
        OpenDevice::open(images.qcow2(), executor_, true, settings_.poll_us);
    if (!in_place.ok()) return in_place.status();
    auto pool =
        OpenDevice::open(images.qcow2(), executor_, false, settings_.poll_us);
    if (!pool.ok()) return pool.status();
    const std::vector<std::string> engines = {"threads", "native", "io_uring"};
    std::vector<Contestant> contestants = {
        {"in place", [&] { return aio_reads(***in_place, work, depth); }},
        {"pool", [&] { return aio_reads(***pool, work, depth); }},
        {"2 x bare preadv",
         [&] { return bare_preadv(images.qcow2().path, work, 2); }}};
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

  absl::Status sync_rows(const Images& images, const std::string& where) {
    const Workload work = workload(400'000);
    auto driver = open_driver(images.raw());
    if (!driver.ok()) return driver.status();
    auto device = OpenDevice::open(images.raw(), executor_, false, 0);
    if (!device.ok()) return device.status();
    std::fprintf(stderr, "%s, synchronous:\n", where.c_str());
    const auto medians = measure_in_turns(
        {{"bare preadv",
          [&] { return bare_preadv(images.raw().path, work, 1); }},
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
    const uint64_t requests = settings_.smoke ? 20 : 1000;
    struct Kind {
      ScalingKind kind;
      const char* name;
      double target;
    };
    for (const Kind& kind :
         {Kind{ScalingKind::kRead, "reads", 14.0},
          Kind{ScalingKind::kOverwrite, "overwrites", 14.0},
          Kind{ScalingKind::kAllocate, "allocating writes", 12.0}}) {
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

  const Settings settings_;
  Executor* const executor_;
  RatioTable table_;
};

const char* environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

Settings default_settings() {
  Settings settings;
  settings.tmpfs = environment("SPINDLE_TMPFS", "/dev/shm");
  settings.ext4 = environment("SPINDLE_EXT4", environment("TMPDIR", "."));
  return settings;
}

int run(const Settings& settings) {
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
  spindle::benchmarks::Settings settings =
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
  app.add_option("--only", settings.only,
                 "only groups whose name has this in it");
  CLI11_PARSE(app, argc, argv);
  if (settings.smoke) {
    settings.rounds = 1;
    settings.image_mib = 16;
  }
  return spindle::benchmarks::run(settings);
}

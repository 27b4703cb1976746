#include "benchmarks/write_rows.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "benchmarks/beside.h"
#include "benchmarks/loops.h"
#include "benchmarks/offsets.h"
#include "benchmarks/scaling.h"

namespace spindle::benchmarks {
namespace {

constexpr size_t kDepth = 32;
constexpr uint64_t kClusterBytes = 65536;
const char* const kEngines[] = {"threads", "native", "io_uring"};

// The contestant of QEMU's that did best; empty if none could run.
std::string best_of_qemu(const std::map<std::string, double>& medians) {
  std::string best;
  for (const auto& [name, value] : medians) {
    if (name.rfind("qemu ", 0) != 0) continue;
    if (best.empty() || value > medians.at(best)) best = name;
  }
  return best;
}

absl::Status no_engine() {
  return absl::InternalError("no engine of qemu-img bench works here");
}

// How an embedder may use the engine.
struct Use {
  const char* name;
  bool in_place;
  bool callbacks;
};
constexpr Use kUses[] = {{"in place", true, false},
                         {"pool", false, false},
                         {"callbacks", false, true}};

absl::StatusOr<double> write_to(const testing::ImageFile& image,
                                const BenchContext& context, const Use& use,
                                const Workload& work) {
  auto device = OpenDevice::open(image, context.executor,
                                 {.read_only = false,
                                  .run_in_place = use.in_place,
                                  .poll_us = context.settings->poll_us});
  if (!device.ok()) return device.status();
  absl::StatusOr<double> result =
      use.callbacks ? callback_requests(***device, work, kDepth)
                    : aio_requests(***device, work, kDepth);
  const absl::Status closed = (***device).close();
  if (!closed.ok()) return closed;
  return result;
}

// A row for each use; what counts is the best that an embedder can choose.
void add_use_rows(const BenchContext& context, const std::string& name,
                  const std::map<std::string, double>& medians,
                  const std::string& other, double target) {
  const Use& chosen = *std::max_element(
      std::begin(kUses), std::end(kUses), [&](const Use& a, const Use& b) {
        return medians.at(a.name) < medians.at(b.name);
      });
  for (const Use& use : kUses) {
    context.table->add(
        {absl::StrCat(name, ", ", use.name), medians.at(use.name),
         medians.at(other), other,
         &use == &chosen ? std::optional<double>(target) : std::nullopt});
  }
}

// Each contestant writes to an image that nobody has written to.
absl::Status add_fresh_rows(const BenchContext& context,
                            const std::string& name, const FreshImage& image,
                            const Workload& work, double target) {
  std::vector<Contestant> contestants;
  for (const Use& use : kUses) {
    contestants.push_back({use.name, [&]() {
                             const absl::Status made = image.make();
                             return made.ok() ? write_to(image.file(), context,
                                                         use, work)
                                              : absl::StatusOr<double>(made);
                           }});
  }
  for (const std::string engine : kEngines) {
    contestants.push_back(
        {"qemu " + engine,
         [&, engine]() {
           const absl::Status made = image.make();
           return made.ok()
                      ? qemu_img_bench(
                            {image.file().path, "qcow2", engine, kDepth}, work)
                      : absl::StatusOr<double>(made);
         },
         true});
  }
  const auto medians = measure_in_turns(contestants, context.settings->rounds);
  if (!medians.ok()) return medians.status();
  const std::string best = best_of_qemu(*medians);
  if (best.empty()) return no_engine();
  add_use_rows(context, name, *medians, best, target);
  return absl::OkStatus();
}

}  // namespace

absl::Status add_overwrite_rows(const BenchContext& context,
                                const FilledImages& images, bool on_tmpfs) {
  const BenchSettings& settings = *context.settings;
  const Workload work =
      scattered_writes(settings.image_bytes(), settings.requests(200'000));
  HostPlaces places;
  std::vector<Contestant> contestants;
  for (const Use& use : kUses) {
    contestants.push_back(
        {use.name,
         [&] { return write_to(images.qcow2(), context, use, work); }});
  }
  if (on_tmpfs) {
    for (const std::string engine : kEngines) {
      contestants.push_back(
          {"qemu " + engine,
           [&, engine] {
             return qemu_img_bench(
                 {images.qcow2().path, "qcow2", engine, kDepth}, work);
           },
           true});
    }
  } else {
    // To the same places of the same file: what a small write costs depends on
    // how large the page cache's pieces of a file are, that is, on who wrote
    // it.
    auto mapped = host_places(images.qcow2(), kClusterBytes);
    if (!mapped.ok()) return mapped.status();
    places = *std::move(mapped);
    for (const size_t threads : {1u, 2u}) {
      contestants.push_back(
          {absl::StrCat(threads, " x bare pwritev"), [&, threads] {
             return bare_transfers(images.qcow2().path, work, threads, places);
           }});
    }
  }
  const auto medians = measure_in_turns(contestants, settings.rounds);
  if (!medians.ok()) return medians.status();
  std::string best = best_of_qemu(*medians);
  if (!on_tmpfs) {
    best = medians->at("1 x bare pwritev") > medians->at("2 x bare pwritev")
               ? "1 x bare pwritev"
               : "2 x bare pwritev";
  }
  if (best.empty()) return no_engine();
  const std::string name = absl::StrCat(
      "overwrites qcow2 ", on_tmpfs ? "tmpfs" : "ext4", " depth ", kDepth);
  add_use_rows(context, name, *medians, best, on_tmpfs ? 2.0 : 0.9);
  return absl::OkStatus();
}

absl::Status add_first_write_rows(const BenchContext& context) {
  const BenchSettings& settings = *context.settings;
  const FreshImage image(settings.tmpfs, settings.image_bytes());
  absl::Status status = add_fresh_rows(
      context, "new clusters tmpfs depth 32", image,
      writes_in_order(image.bytes(), kClusterBytes), /*target=*/4.0);
  if (!status.ok()) return status;
  const FreshImage small(settings.tmpfs, settings.image_bytes() / 4);
  return add_fresh_rows(context, "sequential on new tmpfs depth 32", small,
                        writes_in_order(small.bytes(), 4096), /*target=*/2.0);
}

absl::Status add_sync_rows(const BenchContext& context) {
  const uint64_t flushes = context.settings->requests(500);
  for (const bool allocates : {false, true}) {
    std::map<size_t, double> syncs;
    for (const size_t flushers : {1u, 16u}) {
      const auto result = syncs_per_flush(flushers, allocates, flushes,
                                          absl::Microseconds(200));
      if (!result.ok()) return result.status();
      syncs[flushers] = *result;
    }
    RatioRow row{absl::StrCat("syncs per flush, ",
                              allocates ? "new clusters" : "overwrites",
                              ", 16 flushers"),
                 syncs[16], syncs[1], "1 flusher", std::nullopt};
    row.unit = 1;
    context.table->add(std::move(row));
  }
  return absl::OkStatus();
}

absl::Status add_flush_rows(const BenchContext& context,
                            const FilledImages& images) {
  const BenchSettings& settings = *context.settings;
  const absl::Duration span =
      settings.smoke ? absl::Milliseconds(20) : absl::Milliseconds(700);
  const FreshImage fresh(settings.ext4, settings.image_bytes());
  const auto medians = measure_in_turns(
      {{"ours", [&] { return kept_beside_flushes(fresh, span); }},
       {"bare", [&] { return kept_beside_syncs(images.raw().path, span); }}},
      settings.rounds);
  if (!medians.ok()) return medians.status();
  RatioRow row{"kept by reads beside flushed writes, ext4", medians->at("ours"),
               medians->at("bare"), "bare calls", 0.8};
  row.unit = 1;
  context.table->add(std::move(row));
  return absl::OkStatus();
}

}  // namespace spindle::benchmarks

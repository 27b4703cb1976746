// Mixed requests of every kind from at least eight threads, against a model,
// over every format.  Without a thread pool: the same on one thread.
//
//   SPINDLE_SEED=N            repeats a run's choices
//   SPINDLE_STRESS_SECONDS=N  or --seconds=N: for how long; all variants share
//   it SPINDLE_STRESS_VARIANT=x  only variants whose name contains x

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/stress/counts.h"
#include "tests/stress/maintenance.h"
#include "tests/stress/stress_image.h"
#include "tests/stress/workload.h"
#include "tests/support/seed.h"
#include "threadpool/default_executor.h"

namespace spindle::testing {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kLeastOfEach = 1000;
double g_seconds = 10;

// The smallest caches that may be asked for: two tables' worth.
OptionMap tiny_caches(const std::string& reuse, uint64_t cluster_bytes) {
  return {{"reuse", reuse},
          {"l2-cache-size", std::to_string(2 * cluster_bytes)},
          {"refcount-cache-size", std::to_string(4 * cluster_bytes)}};
}

std::vector<StressVariant> all_variants() {
  std::vector<StressVariant> variants;
  StressVariant raw;
  raw.name = "raw";
  variants.push_back(raw);

  StressVariant qcow2;
  qcow2.format = "qcow2";
  qcow2.name = "qcow2_64k_lowest_short_raw_backing";
  qcow2.backing_format = "raw";
  qcow2.backing_bytes = (3 << 20) + 512;
  qcow2.open_options = {{"reuse", "lowest"}};
  variants.push_back(qcow2);

  qcow2.name = "qcow2_64k_lazy_long_qcow2_backing";
  qcow2.backing_format = "qcow2";
  qcow2.backing_bytes = 5 << 20;
  qcow2.open_options = {{"reuse", "lazy"}};
  variants.push_back(qcow2);

  qcow2.name = "qcow2_512_lowest_tiny_caches";
  qcow2.create_options = "cluster_size=512";
  qcow2.length_bytes = 1 << 20;
  qcow2.backing_format = "raw";
  qcow2.backing_bytes = 1 << 20;
  qcow2.open_options = tiny_caches("lowest", 512);
  qcow2.most_sectors = 32;
  variants.push_back(qcow2);

  qcow2.name = "qcow2_512_lazy_tiny_caches";
  qcow2.open_options = tiny_caches("lazy", 512);
  variants.push_back(qcow2);

  qcow2.name = "qcow2_4k_1_bit_refcounts";
  qcow2.create_options = "cluster_size=4k,refcount_bits=1";
  qcow2.length_bytes = 4 << 20;
  qcow2.backing_format = "qcow2";
  qcow2.backing_bytes = 2 << 20;
  qcow2.open_options = tiny_caches("lazy", 4096);
  variants.push_back(qcow2);

  qcow2.name = "qcow2_version_2_4k";
  qcow2.create_options = "cluster_size=4k,compat=0.10";
  qcow2.discard_shows_backing = true;
  qcow2.open_options = {{"reuse", "lowest"}};
  variants.push_back(qcow2);

  StressVariant vdi;
  vdi.name = "vdi";
  vdi.format = "vdi";
  variants.push_back(vdi);

  StressVariant compressed;
  compressed.name = "qcow2_compressed";
  compressed.format = "qcow2";
  compressed.compressed = true;
  compressed.create_options = "cluster_size=16k";
  compressed.open_options = {{"reuse", "lazy"}};
  variants.push_back(compressed);

  StressVariant lazy;
  lazy.name = "qcow2_lazy_refcounts";
  lazy.format = "qcow2";
  lazy.create_options = "lazy_refcounts=on,cluster_size=2k,refcount_bits=64";
  lazy.open_options = {{"reuse", "lazy"}};
  variants.push_back(lazy);
  StressVariant subclusters;
  subclusters.name = "qcow2_subclusters";
  subclusters.format = "qcow2";
  subclusters.create_options = "extended_l2=on,cluster_size=64k";
  subclusters.open_options = {{"reuse", "lazy"}};
  variants.push_back(subclusters);

  subclusters.name = "qcow2_subclusters_backing_tiny_caches";
  subclusters.create_options = "extended_l2=on,cluster_size=16k";
  subclusters.backing_format = "raw";
  subclusters.backing_bytes = (3 << 20) + 512;
  subclusters.open_options = tiny_caches("lowest", 16384);
  variants.push_back(subclusters);

  StressVariant kept;
  kept.name = "qcow2_discard_no_unref";
  kept.format = "qcow2";
  kept.create_options = "cluster_size=4k";
  kept.backing_format = "raw";
  kept.backing_bytes = 2 << 20;
  kept.open_options = {{"reuse", "lazy"}, {"discard-no-unref", "on"}};
  variants.push_back(kept);

  kept.name = "qcow2_discard_no_unref_subclusters";
  kept.create_options = "extended_l2=on,cluster_size=16k";
  kept.open_options = {{"reuse", "lowest"}, {"discard-no-unref", "on"}};
  variants.push_back(kept);

  StressVariant encrypted;
  encrypted.name = "qcow2_encrypted_over_encrypted";
  encrypted.format = "qcow2";
  encrypted.encrypted = true;
  encrypted.create_options =
      "encrypt.format=luks,encrypt.iter-time=0,cluster_size=16k";
  encrypted.backing_format = "qcow2";
  encrypted.backing_bytes = 3 << 20;
  encrypted.backing_options = "encrypt.format=aes,encrypt.key-secret=secret0";
  encrypted.open_options = {{"reuse", "lazy"}};
  variants.push_back(encrypted);

  encrypted = StressVariant();
  encrypted.name = "luks";
  encrypted.format = "luks";
  encrypted.encrypted = true;
  encrypted.create_options = "iter-time=0";
  encrypted.fixed_length = true;
  variants.push_back(encrypted);

  // Clusters of 512 bytes, as qemu-img makes them above a backing file.
  StressVariant qcow;
  qcow.name = "qcow_backing_tiny_caches";
  qcow.format = "qcow";
  qcow.length_bytes = 2 << 20;
  qcow.backing_format = "raw";
  qcow.backing_bytes = (1 << 20) + 1536;
  qcow.open_options = {{"l2-cache-size", "8192"},
                       {"l2-cache-entry-size", "512"}};
  qcow.most_sectors = 32;
  variants.push_back(qcow);

  qcow = StressVariant();
  qcow.name = "qcow_compressed";
  qcow.format = "qcow";
  variants.push_back(qcow);

  encrypted = StressVariant();
  encrypted.name = "qcow_encrypted_over_encrypted";
  encrypted.format = "qcow";
  encrypted.encrypted = true;
  encrypted.create_options = "encrypt.format=aes";
  encrypted.backing_format = "qcow2";
  encrypted.backing_bytes = 3 << 20;
  encrypted.backing_options = "encrypt.format=aes,encrypt.key-secret=secret0";
  variants.push_back(encrypted);
  // raw and every other where flushes go to a disk, the rest elsewhere.
  for (size_t i = 1; i < variants.size(); ++i)
    variants[i].on_tmpfs = i % 2 == 1;
  return variants;
}

std::vector<StressVariant> chosen_variants() {
  const char* filter = std::getenv("SPINDLE_STRESS_VARIANT");
  std::vector<StressVariant> chosen;
  for (StressVariant& variant : all_variants()) {
    if (filter == nullptr || variant.name.find(filter) != std::string::npos) {
      chosen.push_back(std::move(variant));
    }
  }
  return chosen;
}

struct Share {
  double seconds;
  uint64_t least;  // of each operation
};

// One life of the device: open, work, verify, close, judge.
void run_once(StressImage* image, const StressVariant& variant, uint64_t seed,
              bool has_bitmaps, Share share, Counts* total) {
  const std::unique_ptr<Executor> executor =
      make_executor({.width = 8, .name = "stress", .interleaving_seed = seed});
  BlockDeviceOptions options;
  options.name = variant.name;
  options.run_in_place = seed % 2 == 0;
  options.max_in_flight = seed % 3 == 0 ? 0 : 24;
  auto device = image->open(executor.get(), options, /*read_only=*/false);
  ASSERT_TRUE(device.ok()) << device.status();

  auto before = image->verify(**device);
  ASSERT_TRUE(before.ok()) << before.status();
  Maintenance maintenance(
      device->get(), &image->model(), [&] { return image->verify(**device); },
      {.seed = seed,
       .shortest_bytes = variant.fixed_length ? variant.length_bytes
                                              : variant.length_bytes / 2,
       .longest_bytes = variant.fixed_length ? variant.length_bytes
                                             : 2 * variant.length_bytes,
       .length_unit_bytes = variant.format == "raw" ? uint64_t{1} : 512,
       .has_bitmaps = has_bitmaps,
       .has_repair = variant.format == "qcow2" || variant.format == "raw"});
  const absl::Status started = maintenance.start(*std::move(before));
  ASSERT_TRUE(started.ok()) << started;

  WorkloadOptions workload_options;
  workload_options.seed = seed;
  workload_options.most_sectors = variant.most_sectors;
  workload_options.longest_bytes =
      variant.fixed_length ? variant.length_bytes : 2 * variant.length_bytes;
  workload_options.meanwhile = [&](Workload* workload) {
    return maintenance.step(workload);
  };
  BlockDriver& driver = (*device)->driver();
  if (driver.capabilities().has(Capability::kWriteCompressed)) {
    workload_options.cluster_bytes =
        driver.info().cluster_size_bytes.value_or(0);
  }
  Workload workload(device->get(), &image->model(), executor.get(),
                    workload_options);
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(
                         std::chrono::duration<double>(share.seconds));
  workload.run([&](const Counts& counts) {
    return Clock::now() >= end && counts.least() >= share.least;
  });
  total->add(workload.counts());
  ASSERT_EQ(workload.failure(), "");

  const auto content = image->verify(**device);
  ASSERT_TRUE(content.ok()) << content.status();
  const absl::Status sound = maintenance.judge(*content);
  ASSERT_TRUE(sound.ok()) << sound;
  std::printf("%s: %s\n", variant.name.c_str(),
              maintenance.done().to_string().c_str());
  ASSERT_TRUE((*device)->close().ok());
  device->reset();
  const absl::Status judged = image->judge(*content);
  ASSERT_TRUE(judged.ok()) << judged;

  auto reopened = image->open(executor.get(), {}, /*read_only=*/true);
  ASSERT_TRUE(reopened.ok()) << reopened.status();
  const auto again = image->verify(**reopened);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_TRUE((*reopened)->close().ok());
}

TEST(Stress, EveryByteIsExplained) {
  const uint64_t seed = test_seed();
  const std::vector<StressVariant> variants = chosen_variants();
  ASSERT_FALSE(variants.empty());
  // Each variant's image lives twice, so that the second opening meets what
  // the first left.
  constexpr size_t kLives = 2;
  const size_t runs = variants.size() * kLives;
  const Share share{g_seconds / static_cast<double>(runs),
                    kLeastOfEach / runs + 1};
  Counts total;
  for (const StressVariant& variant : variants) {
    SCOPED_TRACE(variant.name);
    Counts counts;
    auto image = StressImage::create(variant);
    ASSERT_TRUE(image.ok()) << image.status();
    for (size_t life = 0; life < kLives && !HasFatalFailure(); ++life) {
      run_once(image->get(), variant, seed + 1000 * life,
               /*has_bitmaps=*/(seed + life) % 2 == 0, share, &counts);
    }
    std::printf("%s:\n%s", variant.name.c_str(), counts.to_string().c_str());
    std::fflush(stdout);
    if (HasFatalFailure()) return;
    total.add(counts);
  }
  std::printf("all:\n%s", total.to_string().c_str());
  EXPECT_GE(total.least(), kLeastOfEach);
}

}  // namespace

void set_stress_seconds(double seconds) { g_seconds = seconds; }

}  // namespace spindle::testing

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* seconds = std::getenv("SPINDLE_STRESS_SECONDS");
  if (seconds != nullptr)
    spindle::testing::set_stress_seconds(std::atof(seconds));
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--seconds=", 10) == 0) {
      spindle::testing::set_stress_seconds(std::atof(argv[i] + 10));
    }
  }
  return RUN_ALL_TESTS();
}

// Power cuts under a qcow2 (power_cut.h).
//
// SPINDLE_STATES: how many states of the disk are looked at in all.
#include "tests/formats/cluster/power_cut.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

MemoryImageOptions options_of(uint64_t cluster_bytes, uint64_t size_bytes,
                              const std::string& reuse) {
  MemoryImageOptions options;
  options.size_bytes = size_bytes;
  options.create["cluster_size"] = absl::StrCat(cluster_bytes);
  options.open["reuse"] = reuse;
  return options;
}

std::vector<PowerCutSetting> settings() {
  std::vector<PowerCutSetting> list;
  list.push_back({"Lazy", options_of(4096, 96 * 4096, "lazy"), 4096});
  list.push_back({"Lowest", options_of(4096, 96 * 4096, "lowest"), 4096});
  PowerCutSetting backing{"Backing", options_of(4096, 96 * 4096, "lazy"), 4096};
  backing.options.backing = content_of_version({0, 96 * 4096}, kFirstVersion);
  list.push_back(std::move(backing));
  // A refcount block counts 32 KiB of the file, an L2 table maps 32 KiB.
  PowerCutSetting blocks{"RefcountBlocks", options_of(512, 256 << 10, "lazy"),
                         512};
  blocks.options.create["refcount_bits"] = "64";
  list.push_back(std::move(blocks));
  // A refcount table of one cluster counts 2 MiB of the file.
  PowerCutSetting table{"RefcountTable", options_of(512, 2048 << 10, "lazy"),
                        512};
  table.options.create["refcount_bits"] = "64";
  table.filled_bytes = 1880 << 10;
  list.push_back(std::move(table));
  PowerCutSetting kept{"DiscardNoUnref", options_of(4096, 96 * 4096, "lazy"),
                       4096};
  kept.options.open["discard-no-unref"] = "on";
  kept.snapshots = true;
  list.push_back(std::move(kept));
  PowerCutSetting encrypted{"Encrypted", options_of(4096, 96 * 4096, "lazy"),
                            4096};
  encrypted.options.encryption = "aes";
  encrypted.options.backing = content_of_version({0, 96 * 4096}, kFirstVersion);
  encrypted.snapshots = true;
  list.push_back(std::move(encrypted));
  PowerCutSetting compressed{"Compressed", options_of(4096, 96 * 4096, "lazy"),
                             4096};
  compressed.compresses = true;
  list.push_back(std::move(compressed));
  PowerCutSetting snapshots{"Snapshots", options_of(4096, 96 * 4096, "lazy"),
                            4096};
  snapshots.snapshots = true;
  list.push_back(std::move(snapshots));
  PowerCutSetting subclusters{"Subclusters",
                              options_of(16384, 64 * 16384, "lazy"), 16384};
  subclusters.options.create["extended_l2"] = "on";
  subclusters.options.backing =
      content_of_version({0, 64 * 16384}, kFirstVersion);
  subclusters.subclusters = true;
  list.push_back(std::move(subclusters));
  for (const bool raw : {false, true}) {
    PowerCutSetting data{raw ? "RawDataFile" : "DataFile",
                         options_of(4096, 96 * 4096, "lazy"), 4096};
    data.data_file = true;
    data.raw_data_file = raw;
    if (raw) data.options.create["data_file_raw"] = "on";
    list.push_back(std::move(data));
  }
  return list;
}

class PowerCutTest : public ::testing::TestWithParam<PowerCutSetting> {};
INSTANTIATE_TEST_SUITE_P(Settings, PowerCutTest,
                         ::testing::ValuesIn(settings()),
                         [](const auto& info) { return info.param.name; });

TEST_P(PowerCutTest, LeavesASoundImageAndWhatWasFlushed) {
  constexpr int kThreads = 3;
  PowerCut cut(GetParam(), test_seed());
  cut.work(kThreads, /*operations=*/100, [](int) { return true; });
  const int states = power_cut_states() / static_cast<int>(settings().size());
  const PowerCutViolations found = cut.judge(std::max(states, 1));
  EXPECT_EQ(found.count(), 0) << found.first;
}

// What is found over a disk that ignores every second flush.
PowerCutViolations found_over_a_liar(absl::string_view name) {
  const std::vector<PowerCutSetting> all = settings();
  const auto setting = std::find_if(
      all.begin(), all.end(),
      [&](const PowerCutSetting& candidate) { return candidate.name == name; });
  PowerCutViolations all_found;
  for (const int ignored : {0, 1}) {
    // One thread and one seed: the same every time.
    PowerCut cut(*setting, /*seed=*/1);
    cut.work(/*threads=*/1, /*operations=*/200,
             [&](int number) { return number % 2 != ignored; });
    const PowerCutViolations found = cut.judge(60);
    all_found.corrupt_images += found.corrupt_images;
    all_found.wrong_contents += found.wrong_contents;
  }
  return all_found;
}

// This would notice: both kinds of damage are found.
TEST(PowerCutProof, ADiskThatLiesIsFoundOut) {
  const PowerCutViolations found = found_over_a_liar("RefcountBlocks");
  EXPECT_GT(found.corrupt_images, 0);
  EXPECT_GT(found.wrong_contents, 0);
}

// Where data are in a file of their own, it is they that are lost.
TEST(PowerCutProof, DataFilesThatLieAreFoundOut) {
  EXPECT_GT(found_over_a_liar("DataFile").wrong_contents, 0);
  EXPECT_GT(found_over_a_liar("RawDataFile").wrong_contents, 0);
}

}  // namespace
}  // namespace spindle::testing

// Power cuts under a qcow (power_cut.h).
//
// SPINDLE_STATES: how many states of the disk are looked at in all.
#include "tests/formats/cluster/power_cut.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "formats/qcow/layout.h"
#include "formats/qcow/qcow_format.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

PowerCutSetting setting_of(const std::string& name, const QcowShape& shape) {
  PowerCutSetting setting;
  setting.name = name;
  setting.options.format = qcow::qcow_format();
  setting.options.size_bytes = shape.size_bytes;
  setting.options.bytes = new_qcow(shape);
  if (shape.crypt_method == qcow::kCryptAes) setting.options.encryption = "aes";
  if (!shape.backing_filename.empty()) {
    setting.options.backing =
        content_of_version({0, shape.size_bytes}, kFirstVersion);
  }
  setting.cluster_bytes = uint64_t{1} << shape.cluster_bits;
  setting.only_writes = true;
  return setting;
}

std::vector<PowerCutSetting> settings() {
  const QcowShape plain{.size_bytes = 96 * 4096};
  QcowShape overlay = plain;
  overlay.backing_filename = "b";
  std::vector<PowerCutSetting> list;
  list.push_back(setting_of("Plain", plain));
  list.push_back(setting_of("Backing", overlay));
  overlay.crypt_method = qcow::kCryptAes;
  list.push_back(setting_of("Encrypted", overlay));
  // A table maps 32 KiB, and is written back before anybody asks for it.
  PowerCutSetting tables = setting_of(
      "Tables", {.size_bytes = 256 << 10, .cluster_bits = 9, .l2_bits = 6});
  tables.options.open["l2-cache-size"] = "8k";
  list.push_back(std::move(tables));
  PowerCutSetting compressed = setting_of("Compressed", plain);
  compressed.compresses = true;
  list.push_back(std::move(compressed));
  return list;
}

class QcowPowerCut : public ::testing::TestWithParam<PowerCutSetting> {};
INSTANTIATE_TEST_SUITE_P(Settings, QcowPowerCut,
                         ::testing::ValuesIn(settings()),
                         [](const auto& info) { return info.param.name; });

TEST_P(QcowPowerCut, LeavesASoundImageAndWhatWasFlushed) {
  constexpr int kThreads = 3;
  PowerCut cut(GetParam(), test_seed());
  cut.work(kThreads, /*operations=*/100, [](int) { return true; });
  const int states = power_cut_states() / static_cast<int>(settings().size());
  const PowerCutViolations found = cut.judge(std::max(states, 1));
  EXPECT_EQ(found.count(), 0) << found.first;
}

// This would notice: over a disk that ignores every second flush both kinds of
// damage are found.
TEST(QcowPowerCutProof, ADiskThatLiesIsFoundOut) {
  const PowerCutSetting setting = settings().front();
  int corrupt_images = 0;
  int wrong_contents = 0;
  // One thread and given seeds: the same every time.
  for (int seed = 1; seed <= 8; ++seed) {
    PowerCut cut(setting, static_cast<uint64_t>(seed));
    cut.work(/*threads=*/1, /*operations=*/200,
             [&](int number) { return number % 2 != seed % 2; });
    const PowerCutViolations found = cut.judge(60);
    corrupt_images += found.corrupt_images;
    wrong_contents += found.wrong_contents;
  }
  EXPECT_GT(corrupt_images, 0);
  EXPECT_GT(wrong_contents, 0);
}

}  // namespace
}  // namespace spindle::testing

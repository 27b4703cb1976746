// Errors at every access of a qcow to its file (error_injection.h).
#include "tests/formats/cluster/error_injection.h"

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/errors.h"
#include "formats/qcow/layout.h"
#include "formats/qcow/qcow_driver.h"
#include "formats/qcow/qcow_format.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/formats/qcow2/memory_image.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 4096;

MemoryImageOptions options_of(const QcowShape& shape) {
  MemoryImageOptions options;
  options.format = qcow::qcow_format();
  options.size_bytes = shape.size_bytes;
  options.bytes = new_qcow(shape);
  if (shape.crypt_method == qcow::kCryptAes) options.encryption = "aes";
  // Never crowded: a round that nobody asked for would report to nobody.
  options.open["l2-cache-size"] = "4M";
  if (!shape.backing_filename.empty())
    options.backing = std::string(shape.size_bytes, 'b');
  return options;
}

std::vector<FailureScenario> scenarios() {
  const QcowShape shape{.size_bytes = 32 * kCluster};
  const QcowShape overlay{.size_bytes = 32 * kCluster, .backing_filename = "b"};
  const std::vector<Step> first_writes = {
      write(0, kCluster, 1),
      write(5 * kCluster + 512, 1024, 2),
      flush(),
      write(5 * kCluster + 2048, 512, 3),
      write(9 * kCluster + 512, 3 * kCluster, 4),
      flush()};
  std::vector<FailureScenario> list;
  list.push_back(
      {"FirstWrite",
       options_of(shape),
       {},
       first_writes,
       {Purpose::kClusterAlloc, Purpose::kSetLength, Purpose::kL2Update,
        Purpose::kL1Update, Purpose::kFlushToDisk}});
  list.push_back(
      {"FirstWriteOverBacking",
       options_of(overlay),
       {},
       first_writes,
       {Purpose::kClusterAlloc, Purpose::kL2Update, Purpose::kFlushToDisk}});
  list.push_back(
      {"FirstWriteEncrypted",
       options_of({.size_bytes = 32 * kCluster,
                   .crypt_method = qcow::kCryptAes,
                   .backing_filename = "b"}),
       {},
       first_writes,
       {Purpose::kClusterAlloc, Purpose::kL2Update, Purpose::kFlushToDisk}});
  list.push_back(
      {"Overwrite",
       options_of(shape),
       {write(0, 8 * kCluster, 1)},
       {write(512, 3 * kCluster, 2), flush(),
        write(6 * kCluster, 4 * kCluster, 3), write(0, 512, 4), flush()},
       {Purpose::kWriteAio, Purpose::kClusterAlloc}});
  list.push_back(
      {"Compressed",
       options_of(shape),
       {compressed(0, 4 * kCluster, 1), write(4 * kCluster, 512, 2)},
       {compressed(6 * kCluster, 2 * kCluster, 3), flush(),
        compressed(0, kCluster, 4), compressed(4 * kCluster, kCluster, 5),
        flush(), write(2 * kCluster + 512, 512, 6),
        compressed(8 * kCluster, kCluster, 7), flush()},
       {Purpose::kWriteCompressed, Purpose::kReadCompressed, Purpose::kL2Update,
        Purpose::kFlushToDisk}});
  // A table maps 32 KiB: new ones come and go.
  FailureScenario tables{
      "Tables",
      options_of({.size_bytes = 256 << 10, .cluster_bits = 9, .l2_bits = 6}),
      {write(0, 4096, 1)},
      {},
      {Purpose::kL2Load, Purpose::kL2Update, Purpose::kL1Update}};
  for (uint64_t i = 0; i < 6; ++i) {
    tables.steps.push_back(
        write(i * (40 << 10), 17 << 10, static_cast<uint8_t>(1 + i)));
    tables.steps.push_back(flush());
  }
  list.push_back(std::move(tables));
  return list;
}

class QcowErrors : public ::testing::TestWithParam<FailureScenario> {};
INSTANTIATE_TEST_SUITE_P(Scenarios, QcowErrors,
                         ::testing::ValuesIn(scenarios()),
                         [](const auto& info) { return info.param.name; });

TEST_P(QcowErrors, EveryAccessMayFail) { fail_every_access(GetParam()); }

// An image that cannot be read is not opened, and left as it is.
TEST(QcowErrorsAtOpen, OpenReportsItAndWritesNothing) {
  const std::string before = new_qcow({.backing_filename = "b"});
  OpenContext context;
  context.open_child = [](const ChildRequest&) {
    return std::make_shared<MemoryDriver>();
  };
  bool failed = true;
  int k = 0;
  while (failed) {
    auto copy = std::make_shared<MemoryDriver>();
    copy->set_content(0, before);
    auto observed = std::make_shared<ObservingDriver>(copy);
    observed->fail_at({}, EIO, ++k);
    const auto driver = qcow::open_qcow(observed, {}, context);
    failed = observed->failure_count() != 0;
    EXPECT_EQ(driver.ok(), !failed);
    EXPECT_EQ(errno_of(driver.status()).value_or(0), failed ? EIO : 0);
    EXPECT_TRUE(copy->content() == before);
  }
  EXPECT_GT(k, 3);
}

}  // namespace
}  // namespace spindle::testing

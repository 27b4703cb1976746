// The lines that the README shows to embedders, compiled and run.
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/block_device.h"
#include "engine/completion_queue.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "tests/support/qemu_tools.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

TEST(Readme, EmbedsInTenLines) {
  const std::string path = testing::temporary_path("readme");
  ASSERT_TRUE(testing::qemu_create({{path, "qcow2"}, 1 << 20, "", {}}).ok());
  ASSERT_TRUE(testing::qemu_io({path, "qcow2"}, {"write -P 7 0 4k"}).ok());

  auto pool = make_executor(ExecutorOptions{});
  ImageOpener opener(builtin_drivers(), {});
  auto driver = *opener.open(path, "qcow2", OpenOptions{});
  auto queue = *CompletionQueue::create({});
  BlockDeviceOptions options;
  options.completion_queue = queue.get();
  auto disk = *BlockDevice::create(driver, pool.get(), std::move(options));
  char buffer[4096];
  disk->aio_readv(Sector(0), IoVector(buffer, sizeof buffer), /*user_data=*/1);
  Completion done;
  queue->wait(1, absl::InfiniteDuration(), absl::MakeSpan(&done, 1));

  EXPECT_TRUE(done.status.ok()) << done.status;
  EXPECT_EQ(done.user_data, 1u);
  EXPECT_EQ(buffer[0], 7);
  EXPECT_EQ(buffer[4095], 7);
}

}  // namespace
}  // namespace spindle

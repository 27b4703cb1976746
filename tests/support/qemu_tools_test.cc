#include "tests/support/qemu_tools.h"

#include <vector>

#include "gtest/gtest.h"

namespace spindle::testing {
namespace {

TEST(QemuTools, ReportsTheExitCodeAndTheOutput) {
  const auto good = run_tool({"sh", "-c", "echo out; echo err >&2; exit 3"});
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(good->exit_code, 3);
  EXPECT_EQ(good->output, "out\nerr\n");
  EXPECT_FALSE(run_tool({"/no/such/program"}).ok());
  EXPECT_FALSE(run_tool_ok({"false"}).ok());
}

TEST(QemuTools, CheckTellsCleanFromLeakingAndCorrupt) {
  const ImageFile image{temporary_path("check"), "qcow2"};
  ASSERT_TRUE(
      qemu_create(
          {.image = image, .size_bytes = 1 << 20, .options = "", .backing = {}})
          .ok());
  ASSERT_TRUE(qemu_io(image, {"write -P 1 0 64k"}).ok());
  EXPECT_TRUE(qemu_check(image).ok());
  auto bytes = read_file(image.path);
  ASSERT_TRUE(bytes.ok());
  // The first refcount block is cluster 2; an entry far behind is a leak, a
  // used entry that is zero a corruption.
  auto leaking = *bytes;
  leaking[2 * 65536 + 2 * 6 + 1] = 1;
  leaking.resize(7 * 65536);
  ASSERT_TRUE(write_file(image.path, leaking).ok());
  EXPECT_FALSE(qemu_check(image).ok());
  auto corrupt = *bytes;
  corrupt[2 * 65536 + 2 * 5 + 1] = 0;
  ASSERT_TRUE(write_file(image.path, corrupt).ok());
  EXPECT_FALSE(qemu_check(image).ok());
}

TEST(QemuTools, CompareAndFailingCommandsAreErrors) {
  const ImageFile a{temporary_path("a"), "raw"};
  const ImageFile b{temporary_path("b"), "raw"};
  std::vector<uint8_t> bytes(4096, 1);
  ASSERT_TRUE(write_file(a.path, bytes).ok());
  ASSERT_TRUE(write_file(b.path, bytes).ok());
  EXPECT_TRUE(qemu_compare(a, b).ok());
  const ImageFile longer{temporary_path("longer"), "raw"};
  bytes.resize(8192, 0);
  ASSERT_TRUE(write_file(longer.path, bytes).ok());
  EXPECT_FALSE(qemu_compare(a, longer).ok());
  ASSERT_TRUE(qemu_io(b, {"write -P 2 512 512"}).ok());
  EXPECT_FALSE(qemu_compare(a, b).ok());
  EXPECT_TRUE(qemu_io(b, {"read -P 2 512 512"}).ok());
  EXPECT_FALSE(qemu_io(b, {"read -P 3 512 512"}).ok());
  EXPECT_FALSE(qemu_io(b, {"write 1M 512"}).ok());
  EXPECT_FALSE(qemu_io(b, {"no-such-command"}).ok());
}

TEST(QemuTools, MapGivesOffsets) {
  const ImageFile image{temporary_path("map"), "qcow2"};
  ASSERT_TRUE(
      qemu_create(
          {.image = image, .size_bytes = 1 << 20, .options = "", .backing = {}})
          .ok());
  ASSERT_TRUE(
      qemu_io(image, {"write -P 1 128k 64k", "write -z 192k 64k"}).ok());
  const auto map = qemu_map(image);
  ASSERT_TRUE(map.ok()) << map.status();
  ASSERT_GE(map->size(), 3u);
  EXPECT_EQ((*map)[1].start, 128u << 10);
  EXPECT_TRUE((*map)[1].data);
  EXPECT_EQ((*map)[1].offset, 5u * 65536) << to_string((*map)[1]);
  EXPECT_TRUE((*map)[2].zero);
}

TEST(QemuTools, PlacementIgnoresHolesButNotOffsets) {
  const MapEntry data{.start = 0, .length = 512, .data = true, .offset = 4096};
  const MapEntry hole{
      .start = 512, .length = 512, .zero = true, .data = true, .offset = 4608};
  const MapEntry elsewhere{
      .start = 512, .length = 512, .data = true, .offset = 8192};
  const MapEntry nowhere{
      .start = 512, .length = 512, .zero = true, .offset = {}};
  EXPECT_EQ(placement({data, hole}).size(), 1u);
  EXPECT_EQ(placement({data, elsewhere}).size(), 2u);
  EXPECT_EQ(placement({data, nowhere}).size(), 2u);
}

}  // namespace
}  // namespace spindle::testing

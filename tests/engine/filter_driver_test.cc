#include "engine/filter_driver.h"

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"

namespace spindle {
namespace {

using testing::MemoryDriver;

// Answers every call with its own name, so that nothing else can be mistaken
// for it.
class NamingDriver : public BlockDriver, private AccessObserver {
 public:
  explicit NamingDriver(std::shared_ptr<BlockDriver> other)
      : other_(std::move(other)) {}

  static absl::Status said(absl::string_view name) {
    return absl::AbortedError(name);
  }

  absl::Status read(const IoVector&, Sector) override { return said("read"); }
  absl::Status write(const IoVector&, Sector) override { return said("write"); }
  absl::Status flush() override { return said("flush"); }
  uint64_t try_read(const IoVector&, Sector) override { return 1; }
  uint64_t try_write(const IoVector&, Sector) override { return 2; }
  absl::string_view format_name() const override { return "naming"; }
  std::string filename() const override { return "name.img"; }
  uint64_t length_bytes() const override { return 12345; }
  bool read_only() const override { return true; }
  DriverLimits limits() const override {
    return {.request_alignment_bytes = 4096, .max_segments = 3};
  }
  Capabilities capabilities() const override {
    return {Capability::kSnapshots, Capability::kDiscard};
  }
  ImageInfo info() const override {
    ImageInfo info;
    info.format = "naming";
    info.cluster_size_bytes = 777;
    return info;
  }
  std::optional<StorageIdentity> identity() const override {
    return StorageIdentity{3, 4};
  }
  std::shared_ptr<BlockDriver> backing() const override { return other_; }
  std::shared_ptr<BlockDriver> data_file() const override { return other_; }
  AccessObserver* access_observer() override { return this; }
  absl::Status discard(ByteRange) override { return said("discard"); }
  absl::Status write_zeroes(ByteRange, WriteZeroesFlags) override {
    return said("write_zeroes");
  }
  absl::StatusOr<BlockStatus> block_status(ByteRange,
                                           BlockStatusScope) override {
    return said("block_status");
  }
  absl::Status write_compressed(const IoVector&, Sector) override {
    return said("write_compressed");
  }
  absl::Status set_length(uint64_t, SetLengthMode) override {
    return said("set_length");
  }
  absl::Status resize(uint64_t, Preallocation) override {
    return said("resize");
  }
  absl::StatusOr<CheckResult> check(const CheckOptions&) override {
    return said("check");
  }
  absl::StatusOr<std::vector<SnapshotInfo>> list_snapshots() override {
    return said("list_snapshots");
  }
  absl::StatusOr<SnapshotInfo> create_snapshot(const SnapshotInfo&) override {
    return said("create_snapshot");
  }
  absl::Status apply_snapshot(absl::string_view) override {
    return said("apply_snapshot");
  }
  absl::Status delete_snapshot(absl::string_view) override {
    return said("delete_snapshot");
  }
  absl::Status read_vmstate(const IoVector&, uint64_t) override {
    return said("read_vmstate");
  }
  absl::Status write_vmstate(const IoVector&, uint64_t) override {
    return said("write_vmstate");
  }
  absl::Status amend(const AmendOptions&) override { return said("amend"); }
  absl::StatusOr<std::vector<DirtyBitmapInfo>> list_bitmaps() override {
    return said("list_bitmaps");
  }
  absl::StatusOr<std::shared_ptr<const DirtyBitmap>> find_bitmap(
      absl::string_view) override {
    return said("find_bitmap");
  }
  absl::Status add_bitmap(const NewDirtyBitmap&) override {
    return said("add_bitmap");
  }
  absl::Status remove_bitmap(absl::string_view) override {
    return said("remove_bitmap");
  }
  absl::Status clear_bitmap(absl::string_view) override {
    return said("clear_bitmap");
  }
  absl::Status enable_bitmap(absl::string_view, bool) override {
    return said("enable_bitmap");
  }
  absl::Status merge_bitmap(absl::string_view, const DirtyBitmap&) override {
    return said("merge_bitmap");
  }
  absl::Status reopen(const ReopenOptions&) override { return said("reopen"); }
  absl::Status inactivate() override { return said("inactivate"); }
  absl::Status activate() override { return said("activate"); }
  absl::Status close() override { return said("close"); }

 private:
  absl::Status before_access(const Access&) override { return said("access"); }
  const std::shared_ptr<BlockDriver> other_;
};

TEST(FilterDriver, PassesEveryOperationThrough) {
  FilterDriver filter(
      std::make_shared<NamingDriver>(std::make_shared<MemoryDriver>()));
  char byte = 0;
  const IoVector qiov(&byte, 1);
  const DirtyBitmap bitmap(512, 512);
  const struct {
    absl::string_view name;
    absl::Status status;
  } cases[] = {
      {"read", filter.read(qiov, Sector(0))},
      {"write", filter.write(qiov, Sector(0))},
      {"flush", filter.flush()},
      {"discard", filter.discard({0, 512})},
      {"write_zeroes", filter.write_zeroes({0, 512}, {})},
      {"block_status",
       filter.block_status({0, 512}, BlockStatusScope::kThisLayer).status()},
      {"write_compressed", filter.write_compressed(qiov, Sector(0))},
      {"set_length", filter.set_length(1, SetLengthMode::kExact)},
      {"resize", filter.resize(1, Preallocation::kOff)},
      {"check", filter.check({}).status()},
      {"list_snapshots", filter.list_snapshots().status()},
      {"create_snapshot", filter.create_snapshot({}).status()},
      {"apply_snapshot", filter.apply_snapshot("a")},
      {"delete_snapshot", filter.delete_snapshot("a")},
      {"read_vmstate", filter.read_vmstate(qiov, 0)},
      {"write_vmstate", filter.write_vmstate(qiov, 0)},
      {"amend", filter.amend({})},
      {"list_bitmaps", filter.list_bitmaps().status()},
      {"find_bitmap", filter.find_bitmap("a").status()},
      {"add_bitmap", filter.add_bitmap({})},
      {"remove_bitmap", filter.remove_bitmap("a")},
      {"clear_bitmap", filter.clear_bitmap("a")},
      {"enable_bitmap", filter.enable_bitmap("a", true)},
      {"merge_bitmap", filter.merge_bitmap("a", bitmap)},
      {"reopen", filter.reopen({})},
      {"inactivate", filter.inactivate()},
      {"activate", filter.activate()},
      {"close", filter.close()},
  };
  for (const auto& one : cases) EXPECT_EQ(one.status.message(), one.name);
  EXPECT_EQ(filter.try_read(qiov, Sector(0)), 1u);
  EXPECT_EQ(filter.try_write(qiov, Sector(0)), 2u);
}

TEST(FilterDriver, IsWhatItsChildIs) {
  const auto other = std::make_shared<MemoryDriver>();
  const auto child = std::make_shared<NamingDriver>(other);
  FilterDriver filter(child);
  EXPECT_EQ(&filter.child(), child.get());
  EXPECT_EQ(filter.format_name(), "naming");
  EXPECT_EQ(filter.filename(), "name.img");
  EXPECT_EQ(filter.length_bytes(), 12345u);
  EXPECT_TRUE(filter.read_only());
  EXPECT_EQ(filter.limits().request_alignment_bytes, 4096u);
  EXPECT_EQ(filter.limits().max_segments, 3u);
  EXPECT_TRUE(filter.capabilities().has(Capability::kSnapshots));
  EXPECT_FALSE(filter.capabilities().has(Capability::kGrows));
  EXPECT_EQ(filter.info().cluster_size_bytes, 777u);
  EXPECT_EQ(filter.identity(), (StorageIdentity{3, 4}));
  EXPECT_EQ(filter.backing(), other);
  EXPECT_EQ(filter.data_file(), other);
  EXPECT_EQ(filter.access_observer(), child->access_observer());
}

TEST(FilterDriver, InfoHasTheFiltersOwnName) {
  class Named : public FilterDriver {
   public:
    using FilterDriver::FilterDriver;
    absl::string_view format_name() const override { return "named"; }
  };
  const Named filter(std::make_shared<NamingDriver>(nullptr));
  EXPECT_EQ(filter.info().format, "named");
  EXPECT_EQ(filter.info().cluster_size_bytes, 777u);
}

}  // namespace
}  // namespace spindle

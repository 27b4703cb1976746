#include "engine/block_driver.h"

#include "absl/strings/match.h"
#include "engine/dirty_bitmap.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

// As little as the contract allows.
class SmallestDriver : public BlockDriver {
 public:
  explicit SmallestDriver(bool read_only) : read_only_(read_only) {}
  absl::Status read(const IoVector& qiov, Sector) override {
    qiov.fill(0);
    return absl::OkStatus();
  }
  absl::Status write(const IoVector&, Sector) override {
    return absl::OkStatus();
  }
  absl::Status flush() override {
    ++flush_count;
    return absl::OkStatus();
  }
  absl::string_view format_name() const override { return "smallest"; }
  std::string filename() const override { return "s.img"; }
  uint64_t length_bytes() const override { return 1024; }
  bool read_only() const override { return read_only_; }

  int flush_count = 0;

 private:
  const bool read_only_;
};

TEST(BlockDriver, OptionalOperationsAreRefusedByName) {
  SmallestDriver driver(false);
  const struct {
    absl::Status status;
    absl::string_view operation;
  } cases[] = {
      {driver.discard({0, 512}), "discard"},
      {driver.write_zeroes({0, 512}, {}), "write zeroes"},
      {driver.block_status({0, 512}, BlockStatusScope::kThisLayer).status(),
       "block status"},
      {driver.write_compressed({}, Sector(0)), "compressed write"},
      {driver.check({}).status(), "check"},
      {driver.list_snapshots().status(), "list of snapshots"},
      {driver.create_snapshot({}).status(), "creation of a snapshot"},
      {driver.apply_snapshot("1"), "return to a snapshot"},
      {driver.delete_snapshot("1"), "deletion of a snapshot"},
      {driver.list_bitmaps().status(), "list of bitmaps"},
      {driver.find_bitmap("b").status(), "dirty bitmap"},
      {driver.add_bitmap({}), "creation of a bitmap"},
      {driver.remove_bitmap("b"), "removal of a bitmap"},
      {driver.clear_bitmap("b"), "clearing of a bitmap"},
      {driver.enable_bitmap("b", true), "enabling of a bitmap"},
      {driver.merge_bitmap("b", DirtyBitmap(512, 512)),
       "merging into a bitmap"},
      {driver.set_length(0, SetLengthMode::kExact), "change of length"},
      {driver.reopen({}), "reopen"},
      {driver.inactivate(), "inactivate"},
      {driver.activate(), "activate"},
  };
  for (const auto& c : cases) {
    EXPECT_TRUE(absl::IsUnimplemented(c.status)) << c.operation;
    EXPECT_TRUE(absl::StrContains(c.status.message(), c.operation));
    EXPECT_TRUE(absl::StrContains(c.status.message(), "'smallest'"));
    EXPECT_TRUE(absl::StrContains(c.status.message(), "'s.img'"));
  }
}

TEST(BlockDriver, NothingCanBeTried) {
  SmallestDriver driver(false);
  char memory[512];
  EXPECT_EQ(driver.try_read(IoVector(memory, 512), Sector(0)), 0u);
  EXPECT_EQ(driver.try_write(IoVector(memory, 512), Sector(0)), 0u);
}

TEST(BlockDriver, InfoSaysWhatIsKnown) {
  const ImageInfo info = SmallestDriver(false).info();
  EXPECT_EQ(info.format, "smallest");
  EXPECT_EQ(info.filename, "s.img");
  EXPECT_EQ(info.virtual_size_bytes, 1024u);
}

TEST(BlockDriver, CloseFlushesWhatIsWritable) {
  SmallestDriver writable(false);
  EXPECT_TRUE(writable.close().ok());
  EXPECT_EQ(writable.flush_count, 1);
  SmallestDriver read_only(true);
  EXPECT_TRUE(read_only.close().ok());
  EXPECT_EQ(read_only.flush_count, 0);
}

TEST(Capabilities, AddAndRemove) {
  Capabilities capabilities{Capability::kDiscard};
  EXPECT_TRUE(capabilities.has(Capability::kDiscard));
  EXPECT_FALSE(capabilities.has(Capability::kTryRead));
  capabilities.add(Capability::kTryRead);
  capabilities.remove(Capability::kDiscard);
  EXPECT_FALSE(capabilities.has(Capability::kDiscard));
  EXPECT_TRUE(capabilities.has(Capability::kTryRead));
}

TEST(ReopenOptions, EachDriverTakesItsOwn) {
  ReopenOptions options;
  options.read_only = true;
  options.direct = false;
  options.driver_options = {{"a", "1"},
                            {"file.b", "2"},
                            {"file.file.c", "3"},
                            {"files", "4"},
                            {"image.d", "5"}};
  const ReopenOptions below = options.take_below({"file", "image"});
  EXPECT_TRUE(below.read_only);
  EXPECT_EQ(below.direct, false);
  EXPECT_EQ(below.no_flush, std::nullopt);
  EXPECT_EQ(below.driver_options,
            (std::map<std::string, std::string>{
                {"b", "2"}, {"d", "5"}, {"file.c", "3"}}));
  EXPECT_EQ(options.driver_options,
            (std::map<std::string, std::string>{{"a", "1"}, {"files", "4"}}));
  EXPECT_EQ(options.refuse_options(),
            absl::InvalidArgumentError("Cannot change the option 'a'"));
  EXPECT_EQ(ReopenOptions{}.refuse_options(), absl::OkStatus());
}

}  // namespace
}  // namespace spindle

#include "formats/raw/raw_format.h"

#include <memory>
#include <vector>

#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "formats/raw/file_driver.h"
#include "formats/raw/protocols.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using testing::flipped;

using testing::pattern;
using testing::ScratchFile;

CreateOptions of_size(uint64_t size_bytes) {
  CreateOptions options;
  options.size_bytes = size_bytes;
  return options;
}

TEST(RawFormat, IsALastResort) {
  const RawFormat raw({});
  EXPECT_EQ(raw.probe({}, "x"), 1);
  EXPECT_EQ(raw.probe(pattern(512, 1), "x"), 1);
}

TEST(RawFormat, IsTheFileItselfWhereItWasStated) {
  const ScratchFile scratch;
  scratch.write(pattern(512, 1));
  const RawFormat raw({});
  const std::shared_ptr<BlockDriver> file =
      *FileDriver::open(scratch.path(), {});
  EXPECT_EQ(*raw.open(file, {}, {}), file);
  EXPECT_NE(*raw.open(file, flipped({&OpenOptions::probed}), {}), file);
}

TEST(RawFormat, CreatesTheLengthThatQemuCreates) {
  const RawFormat raw({});
  for (const uint64_t size : {0u, 1u, 511u, 512u, 1000u, 1048577u}) {
    const ScratchFile theirs;
    const ScratchFile ours;
    ASSERT_TRUE(testing::make_with_qemu({theirs.path(), "raw"}, size).ok());
    const CreateOptions options = of_size(size);
    ASSERT_TRUE(
        file_protocol()
            ->create(ours.path(), raw.initial_file_length(options), {}, nullptr)
            .ok());
    std::shared_ptr<BlockDriver> file = *file_protocol()->open(ours.path(), {});
    ASSERT_TRUE(raw.create(file, options, {}).ok());
    EXPECT_EQ(ours.content(), theirs.content()) << size;
  }
}

TEST(RawFormat, GivesAnEmptyFileItsLength) {
  const ScratchFile scratch;
  scratch.write({});
  const std::shared_ptr<BlockDriver> file =
      *FileDriver::open(scratch.path(), {});
  ASSERT_TRUE(RawFormat({}).create(file, of_size(1000), {}).ok());
  EXPECT_EQ(scratch.length(), 1024u);
}

TEST(RawFormat, RefusesBackingFilesAndImpossibleSizes) {
  const ScratchFile scratch;
  scratch.write({});
  const std::shared_ptr<BlockDriver> file =
      *FileDriver::open(scratch.path(), {});
  const RawFormat raw({});
  CreateOptions overlay = of_size(512);
  overlay.backing_filename = "base";
  EXPECT_TRUE(absl::IsInvalidArgument(raw.create(file, overlay, {})));
  EXPECT_TRUE(
      absl::IsInvalidArgument(raw.create(file, of_size(~uint64_t{0}), {})));
  EXPECT_EQ(scratch.length(), 0u);
}

TEST(RawFormat, AnImpossibleSizeLeavesWhatWasThere) {
  constexpr uint64_t kLongest = (uint64_t{1} << 63) - 512;
  const RawFormat raw({});
  EXPECT_EQ(raw.check_create(of_size(kLongest)), absl::OkStatus());
  EXPECT_TRUE(absl::IsInvalidArgument(raw.check_create(of_size(kLongest + 1))));
  const ScratchFile scratch;
  scratch.write(pattern(512, 1));
  EXPECT_TRUE(absl::IsInvalidArgument(
      ImageOpener(builtin_drivers(), {})
          .create(scratch.path(), "raw", of_size(kLongest + 1))));
  EXPECT_EQ(scratch.content(), pattern(512, 1));
}

}  // namespace
}  // namespace spindle

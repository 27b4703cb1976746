#include "formats/raw/create_file.h"

#include <errno.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "formats/raw/file_driver.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using testing::locked_bytes;
using testing::pattern;
using testing::ScratchFile;

TEST(CreateFile, MakesWhatQemuMakes) {
  for (const char* mode : {"off", "falloc", "full"}) {
    for (const uint64_t size : {0u, 512u, 4096u, 100352u, 1u << 20}) {
      const ScratchFile theirs;
      const ScratchFile ours;
      ASSERT_TRUE(testing::make_with_qemu({theirs.path(), "raw"}, size,
                                          absl::StrCat("preallocation=", mode))
                      .ok());
      const auto options = parse_file_create_options({{"preallocation", mode}});
      ASSERT_TRUE(options.ok()) << options.status();
      ASSERT_TRUE(create_file(ours.path(), size, *options).ok());
      EXPECT_EQ(ours.content(), theirs.content()) << mode << " " << size;
      EXPECT_EQ(ours.allocated_bytes(), theirs.allocated_bytes())
          << mode << " " << size;
    }
  }
}

TEST(CreateFile, ReplacesWhatWasThere) {
  const ScratchFile scratch;
  scratch.write(pattern(100000, 1));
  ASSERT_TRUE(create_file(scratch.path(), 1024, {}).ok());
  EXPECT_EQ(scratch.content(), std::vector<uint8_t>(1024));
  EXPECT_TRUE(locked_bytes(scratch.path()).empty());
}

TEST(CreateFile, LeavesAFileThatIsInUse) {
  const ScratchFile scratch;
  scratch.write(pattern(1000, 2));
  const auto driver = FileDriver::open(scratch.path(), {});
  ASSERT_TRUE(driver.ok());
  const absl::Status status = create_file(scratch.path(), 512, {});
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_EQ(scratch.content(), pattern(1000, 2));
}

TEST(CreateFile, RemovesWhatItMadeWhenItFails) {
  const ScratchFile scratch;
  const absl::Status status =
      create_file(scratch.path(), uint64_t{1} << 62, {});
  EXPECT_EQ(errno_of(status), EFBIG) << status;
  EXPECT_NE(::access(scratch.path().c_str(), F_OK), 0);
}

TEST(CreateFile, RefusesWhatIsNotARegularFile) {
  EXPECT_TRUE(absl::IsInvalidArgument(create_file("/dev/null", 512, {})));
  EXPECT_FALSE(create_file(::testing::TempDir(), 512, {}).ok());
}

TEST(CreateFile, MetadataPreallocationIsTheFormatsBusiness) {
  const ScratchFile scratch;
  const auto options =
      parse_file_create_options({{"preallocation", "metadata"}});
  ASSERT_TRUE(options.ok());
  for (const uint64_t length_bytes : {0, 512}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        create_file(scratch.path(), length_bytes, *options)));
  }
}

TEST(FileCreateOptions, ValidOnes) {
  const auto options = parse_file_create_options(
      {{"preallocation", "full"}, {"nocow", "on"}, {"extent_size_hint", "2M"}});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->preallocation, FilePreallocation::kFull);
  EXPECT_TRUE(options->nocow);
  EXPECT_EQ(options->extent_size_hint_bytes, 2u << 20);
}

TEST(FileCreateOptions, InvalidOnesAreRefusedByName) {
  for (const auto& [name, value] : OptionMap{{"preallocation", "bogus"},
                                             {"nocow", "maybe"},
                                             {"extent_size_hint", "8G"},
                                             {"foo", "1"}}) {
    const absl::Status status =
        parse_file_create_options({{name, value}}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name;
    EXPECT_NE(status.message().find(name), absl::string_view::npos) << status;
  }
}

}  // namespace
}  // namespace spindle

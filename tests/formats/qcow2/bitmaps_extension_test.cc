// The header while it comes to name another bitmap directory, through power
// cuts and failing accesses: the old directory, the new one or none, and
// everything else as it was.
#include "formats/qcow2/bitmaps_extension.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "engine/errors.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/failing_accesses.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::CutDisk;
using testing::LoggingDriver;
using testing::MemoryDriver;
using testing::ObservingDriver;
using State = BitmapsExtension::State;

constexpr uint64_t kCluster = 4096;
constexpr BitmapDirectory kOld{2, 3 * kCluster, 64};
constexpr BitmapDirectory kNew{3, 4 * kCluster, 96};
constexpr BitmapDirectory kNone{};

struct Case {
  const char* name;
  BitmapDirectory from;
  BitmapDirectory to;
  // Bytes of an extension before and behind that of the bitmaps; -1: none.
  int before = -1;
  int behind = -1;
  std::string backing = "";
  // By how much the header's length is no multiple of 8.
  size_t odd = 0;
};

std::vector<Case> cases() {
  return {
      {"Replace", kOld, kNew},
      {"Add", kNone, kNew},
      {"Remove", kOld, kNone},
      // With 112 bytes of header and 16 of extension headers: the data begin
      // 8 bytes before the second sector.
      {"ReplaceAcrossSectors", kOld, kNew, 376},
      {"AddAcrossSectors", kNone, kNew, 376},
      {"RemoveAcrossSectors", kOld, kNone, 376},
      {"ReplaceAmongOthers", kOld, kNew, 376, 600},
      {"RemoveAmongOthers", kOld, kNone, 376, 600},
      {"AddAmongOthers", kNone, kNew, 300, 700},
      {"AddBesideAName", kNone, kNew, 376, -1, "short"},
      {"AddBesideALongName", kNone, kNew, 16, 8, std::string(1000, 'n')},
      // The old name lies in both sectors that the extension comes to lie in.
      {"AddWhereALongNameWas", kNone, kNew, 376, -1, std::string(600, 'n')},
      {"ReplaceBesideAName", kOld, kNew, 376, -1, "short"},
      {"RemoveBesideAName", kOld, kNone, -1, 8, std::string(1000, 'n')},
      {"ReplaceBehindAnOddHeader", kOld, kNew, 376, -1, "short", 3},
      {"AddBehindAnOddHeader", kNone, kNew, 360, -1, "short", 3},
      {"RemoveBehindAnOddHeader", kOld, kNone, 376, -1, "short", 3},
      // It begins 5 bytes before the second sector.
      {"ReplaceInTwoSectors", kOld, kNew, 384, -1, "", 3},
      {"RemoveInTwoSectors", kOld, kNone, 384, -1, "", 3},
  };
}

const std::string& empty_image() {
  static const auto* const bytes = new std::string(testing::qemu_image_bytes(
      64 * kCluster, absl::StrCat("cluster_size=", kCluster)));
  return *bytes;
}

Header header_of(const Case& c) {
  const std::string& image = empty_image();
  Header header = *parse_header(
      {reinterpret_cast<const uint8_t*>(image.data()), image.size()},
      image.size());
  header.extensions.clear();
  header.backing_filename = c.backing;
  header.unknown_fields = std::string(c.odd, 'x');
  header.header_length += static_cast<uint32_t>(c.odd);
  if (c.before >= 0) {
    header.extensions.push_back(
        {0x11111111, std::string(static_cast<size_t>(c.before), 'b')});
  }
  if (c.from.count != 0) {
    header.extensions.push_back(
        {kExtensionBitmaps, serialize_bitmaps_extension(c.from)});
    header.autoclear_features = kAutoclearBitmaps;
  }
  if (c.behind >= 0) {
    header.extensions.push_back(
        {0x22222222, std::string(static_cast<size_t>(c.behind), 'a')});
  }
  return header;
}

std::string file_of(const Case& c) {
  std::string image = empty_image();
  const auto bytes = serialize_header(header_of(c));
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  std::string head(bytes->begin(), bytes->end());
  head.resize(kCluster);
  image.replace(0, kCluster, head);
  return image;
}

// Which directory a header names; reports what is wrong with the rest of it.
BitmapDirectory named_by(const std::string& bytes, const Case& c) {
  const auto header = parse_header(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
      bytes.size());
  EXPECT_TRUE(header.ok()) << header.status();
  if (!header.ok()) return kNone;
  Header wanted = header_of(c);
  Header rest = *header;
  for (Header* h : {&wanted, &rest}) {
    std::erase_if(h->extensions, [](const HeaderExtension& extension) {
      return extension.type == kExtensionBitmaps;
    });
    h->autoclear_features &= ~kAutoclearBitmaps;
    h->backing_file_offset = 0;
    h->backing_file_size = 0;
  }
  EXPECT_TRUE(rest == wanted);
  const auto directory = find_bitmap_directory(*header);
  EXPECT_TRUE(directory.ok()) << directory.status();
  return directory.ok() ? *directory : kNone;
}

class BitmapsExtensionTest : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Cases, BitmapsExtensionTest,
                         ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST_P(BitmapsExtensionTest, SurvivesPowerCuts) {
  const Case& c = GetParam();
  const std::string first = file_of(c);
  ASSERT_EQ(named_by(first, c), c.from);
  const auto file =
      std::make_shared<LoggingDriver>(first, [](int) { return true; });
  ByteChannel channel(file);
  BitmapsExtension extension(&channel, kCluster);
  EXPECT_TRUE(extension.check_room().ok());
  State state = State::kUnknown;
  const absl::Status status = extension.change(c.to, &state);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(state, State::kNew);

  std::mt19937_64 random(testing::test_seed());
  const auto log = file->entries();
  CutDisk disk(first, log);
  for (size_t moment = 0; moment <= log.size(); ++moment) {
    for (int i = 0; i < 40; ++i) {
      const BitmapDirectory named = named_by(disk.cut(moment, &random), c);
      ASSERT_TRUE(named == c.from || named == c.to || named == kNone);
      if (moment == 0) {
        ASSERT_TRUE(named == c.from);
      }
      // All but the zeroes that a removal leaves is durable.
      if (moment == log.size()) {
        ASSERT_TRUE(named == c.to);
      }
      if (HasFailure()) return;
    }
  }
}

TEST_P(BitmapsExtensionTest, SaysWhatAnErrorLeaves) {
  const Case& c = GetParam();
  const std::string first = file_of(c);
  const int failures = testing::for_each_failing_access([&](const auto& fail) {
    auto memory = std::make_shared<MemoryDriver>();
    memory->set_content(0, first);
    auto file = std::make_shared<ObservingDriver>(memory);
    ByteChannel channel(file);
    BitmapsExtension extension(&channel, kCluster);
    fail.arm(file.get());
    State state = State::kUnknown;
    const absl::Status status = extension.change(c.to, &state);
    const BitmapDirectory named = named_by(memory->content(), c);
    EXPECT_EQ(status.ok(), state == State::kNew) << status;
    if (file->failure_count() == 0) {
      EXPECT_EQ(state, State::kNew);
      EXPECT_EQ(named, c.to);
      return false;
    }
    if (!status.ok()) {
      EXPECT_EQ(errno_of(status), fail.error_number) << status;
    }
    if (state == State::kOld) {
      EXPECT_EQ(named, c.from);
    }
    // An error that does not come again is made good.
    if (!status.ok() && !fail.from_then_on()) {
      EXPECT_EQ(state, State::kOld);
    }
    return true;
  });
  EXPECT_GT(failures, 0);
}

// Nothing is written where no single write would do.
TEST(BitmapsExtension, RefusesWhereAnOddHeaderLeavesNoPlace) {
  const Case in_two_sectors{"", kNone, kNew, 384, -1, "", 3};
  const std::string first = file_of(in_two_sectors);
  std::string in_the_fields = file_of({"", kNone, kNew});
  store_big64(&in_the_fields[kBackingFileOffsetOffset], 1);
  for (const std::string& content : {first, in_the_fields}) {
    auto memory = std::make_shared<MemoryDriver>();
    memory->set_content(0, content);
    ByteChannel channel(memory);
    BitmapsExtension extension(&channel, kCluster);
    EXPECT_TRUE(absl::IsFailedPrecondition(extension.check_room()));
    State state = State::kUnknown;
    EXPECT_TRUE(absl::IsFailedPrecondition(extension.change(kNew, &state)));
    EXPECT_EQ(state, State::kOld);
    EXPECT_TRUE(memory->content() == content);
  }
}

TEST(BitmapsExtension, NeedsRoomForTwoNames) {
  const Case c{"", kNone, kNew, 16, 1200, std::string(1000, 'n')};
  Case tight = c;
  tight.behind = 2000;
  const std::string first = file_of(tight);
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, first);
  ByteChannel channel(memory);
  BitmapsExtension extension(&channel, kCluster);
  EXPECT_EQ(extension.check_room().code(),
            absl::StatusCode::kResourceExhausted);
  State state = State::kUnknown;
  EXPECT_EQ(extension.change(kNew, &state).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(state, State::kOld);
  EXPECT_TRUE(memory->content() == first);
}

}  // namespace
}  // namespace spindle::qcow2

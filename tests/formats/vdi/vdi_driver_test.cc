// The vdi driver over memory: reading, writing, what stays after errors, and
// what overlapping calls see.
#include "formats/vdi/vdi_driver.h"

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/errors.h"
#include "formats/vdi/layout.h"
#include "gtest/gtest.h"
#include "tests/formats/vdi/memory_vdi.h"

namespace spindle::testing {
namespace {

using Repeat = ObservingDriver::Repeat;

uint32_t map_entry(const MemoryVdi& image, uint32_t index) {
  return load_little32(image.memory->content({512 + index * 4, 4}).data());
}
uint32_t allocated_count(const MemoryVdi& image) {
  return load_little32(
      image.memory->content({vdi::kAllocatedOffset, 4}).data());
}

TEST(VdiDriver, IsWhatItSays) {
  MemoryVdi image(new_vdi(3 * kMiB + 512));
  ASSERT_TRUE(image.open().ok());
  EXPECT_EQ(image.driver->format_name(), "vdi");
  EXPECT_EQ(image.driver->length_bytes(), 3 * kMiB + 512);
  EXPECT_EQ(image.driver->info().cluster_size_bytes, kMiB);
  EXPECT_FALSE(image.driver->read_only());
  OpenOptions options;
  options.driver_options["block-size"] = "1";
  EXPECT_TRUE(absl::IsInvalidArgument(image.open(options)));
  options.driver_options.clear();
  options.snapshot.emplace();
  EXPECT_TRUE(absl::IsUnimplemented(image.open(options)));
}

TEST(VdiDriver, ANewDiskReadsAsZeroesWithoutIo) {
  MemoryVdi image(new_vdi(3 * kMiB));
  ASSERT_TRUE(image.open().ok());
  image.file->reset_counts();
  EXPECT_EQ(read_range(*image.driver, {kMiB - 512, 1024}),
            std::string(1024, '\0'));
  EXPECT_EQ(image.file->total_count(), 0u);
}

TEST(VdiDriver, AFirstWriteTakesTheNextBlockWhole) {
  MemoryVdi image(new_vdi(4 * kMiB));
  ASSERT_TRUE(image.open().ok());
  ASSERT_TRUE(write_fill(*image.driver, {2 * kMiB + 1024, 512}, 'a').ok());
  ASSERT_TRUE(write_fill(*image.driver, {512, 512}, 'b').ok());
  ASSERT_TRUE(image.driver->flush().ok());
  EXPECT_EQ(map_entry(image, 2), 0u);
  EXPECT_EQ(map_entry(image, 0), 1u);
  EXPECT_EQ(map_entry(image, 1), vdi::kFree);
  EXPECT_EQ(allocated_count(image), 2u);
  EXPECT_EQ(image.memory->length_bytes(), kFirstBlock + 2 * kMiB);
  EXPECT_EQ(image.memory->content({kFirstBlock + 1024, 512}),
            std::string(512, 'a'));
  EXPECT_EQ(image.memory->content({kFirstBlock + kMiB + 512, 512}),
            std::string(512, 'b'));
  EXPECT_EQ(check_bytes(image.memory->content())->corruptions, 0u);
}

TEST(VdiDriver, WritesAcrossBlocksAndReadsThemBack) {
  MemoryVdi image(new_vdi(4 * kMiB));
  ASSERT_TRUE(image.open().ok());
  const ByteRange range{kMiB - 1024, 2 * kMiB + 2048};
  ASSERT_TRUE(write_fill(*image.driver, range, 'c').ok());
  EXPECT_EQ(read_range(*image.driver, range), std::string(range.length, 'c'));
  EXPECT_EQ(read_range(*image.driver, {0, kMiB - 1024}),
            std::string(kMiB - 1024, '\0'));
  ASSERT_TRUE(image.driver->close().ok());
  ASSERT_TRUE(image.open().ok());
  EXPECT_EQ(read_range(*image.driver, range), std::string(range.length, 'c'));
}

TEST(VdiDriver, OverwritesTouchNoMetadata) {
  MemoryVdi image(new_vdi(2 * kMiB));
  ASSERT_TRUE(image.open().ok());
  ASSERT_TRUE(write_fill(*image.driver, {0, 512}, 'a').ok());
  ASSERT_TRUE(image.driver->flush().ok());
  image.file->reset_counts();
  ASSERT_TRUE(write_fill(*image.driver, {512, 512}, 'b').ok());
  ASSERT_TRUE(image.driver->flush().ok());
  EXPECT_EQ(image.file->count(AccessKind::kWrite), 1u);
  EXPECT_EQ(image.file->count(AccessKind::kFlush), 1u);
}

TEST(VdiDriver, AStaticImageHasItsBlocksAlready) {
  MemoryVdi image(new_vdi(3 * kMiB, /*is_static=*/true));
  ASSERT_TRUE(image.open().ok());
  const uint64_t length = image.memory->length_bytes();
  EXPECT_EQ(length, kFirstBlock + 3 * kMiB);
  image.file->reset_counts();
  ASSERT_TRUE(write_fill(*image.driver, {kMiB, 512}, 's').ok());
  ASSERT_TRUE(image.driver->close().ok());
  EXPECT_EQ(image.file->count(AccessKind::kWrite), 1u);
  EXPECT_EQ(image.memory->length_bytes(), length);
  EXPECT_EQ(check_bytes(image.memory->content())->corruptions, 0u);
}

// A block that a power cut left behind, full of what was written then.
TEST(VdiDriver, ALeftOverBlockIsTakenAndCleared) {
  std::string bytes = new_vdi(3 * kMiB);
  bytes.resize(kFirstBlock + kMiB, 'x');
  store_little32(&bytes[vdi::kAllocatedOffset], 1);
  EXPECT_EQ(check_bytes(bytes)->corruptions, 1u);
  MemoryVdi image(bytes);
  ASSERT_TRUE(image.open().ok());
  ASSERT_TRUE(write_fill(*image.driver, {kMiB, 512}, 'd').ok());
  EXPECT_EQ(read_range(*image.driver, {kMiB, kMiB}),
            std::string(512, 'd') + std::string(kMiB - 512, '\0'));
  ASSERT_TRUE(image.driver->close().ok());
  EXPECT_EQ(map_entry(image, 1), 0u);
  EXPECT_EQ(check_bytes(image.memory->content())->corruptions, 0u);
}

TEST(VdiDriver, ADamagedMapIsReadButNotWritten) {
  std::string bytes = new_vdi(3 * kMiB);
  store_little32(&bytes[512], 0);
  store_little32(&bytes[516], 0);
  bytes.resize(kFirstBlock + kMiB, 'x');
  MemoryVdi image(bytes);
  EXPECT_TRUE(absl::IsDataLoss(image.open()));
  OpenOptions options;
  options.read_only = true;
  ASSERT_TRUE(image.open(options).ok());
  EXPECT_EQ(read_range(*image.driver, {kMiB, 512}), std::string(512, 'x'));
  ASSERT_TRUE(image.driver->close().ok());
  EXPECT_EQ(image.memory->content(), bytes);
}

TEST(VdiDriver, SaysWhereBlocksAre) {
  MemoryVdi image(new_vdi(8 * kMiB));
  ASSERT_TRUE(image.open().ok());
  ASSERT_TRUE(write_fill(*image.driver, {3 * kMiB, 512}, 'a').ok());
  const auto status_at = [&](ByteRange range) {
    return *image.driver->block_status(range, BlockStatusScope::kWholeChain);
  };
  BlockStatus status = status_at({512, 8 * kMiB - 512});
  EXPECT_EQ(status.length, 3 * kMiB - 512);
  EXPECT_TRUE(status.zero && !status.data && status.allocated);
  EXPECT_FALSE(status.end_of_image || status.host_offset.has_value());
  status = status_at({3 * kMiB + 512, 4 * kMiB});
  EXPECT_EQ(status.length, kMiB - 512);
  EXPECT_TRUE(status.data && !status.zero);
  EXPECT_EQ(status.host_offset, kFirstBlock + 512);
  status = status_at({5 * kMiB, 3 * kMiB});
  EXPECT_EQ(status.length, 3 * kMiB);
  EXPECT_TRUE(status.end_of_image);
}

TEST(VdiDriver, IsCheckedButNotRepaired) {
  MemoryVdi image(new_vdi(2 * kMiB));
  ASSERT_TRUE(image.open().ok());
  ASSERT_TRUE(write_fill(*image.driver, {0, 512}, 'a').ok());
  ASSERT_TRUE(image.driver->flush().ok());
  EXPECT_EQ(image.driver->check({})->corruptions, 0u);
  CheckOptions repair;
  repair.fix_leaks = true;
  EXPECT_TRUE(absl::IsUnimplemented(image.driver->check(repair).status()));
}

// ---- Errors -----------------------------------------------------------------

// Runs writes and flushes of which any may fail, as a guest that goes on.
// Returns what must be there: what a successful flush followed.
void use(BlockDriver& driver, std::string* flushed, std::string* latest,
         std::vector<bool>* unsure) {
  struct Step {
    ByteRange range;  // empty: flush
    char value;
  };
  const Step steps[] = {{{512, 1024}, 'a'},
                        {{}, 0},
                        {{2 * kMiB - 512, 1024}, 'b'},
                        {{1024, 512}, 'c'},
                        {{}, 0},
                        {{kMiB, 512}, 'd'},
                        {{}, 0}};
  for (const Step& step : steps) {
    if (step.range.empty()) {
      if (driver.flush().ok()) *flushed = *latest;
      continue;
    }
    const absl::Status status = write_fill(driver, step.range, step.value);
    for (uint64_t i = step.range.offset; i < step.range.end(); ++i) {
      // A write that failed may have written some.
      (*unsure)[i] = !status.ok();
      if (status.ok()) (*latest)[i] = step.value;
    }
  }
}

class VdiErrors : public ::testing::TestWithParam<std::tuple<int, Repeat>> {};

TEST_P(VdiErrors, LeaveASoundImageAndWhatWasReadable) {
  const auto [error_number, repeat] = GetParam();
  const std::string bytes = new_vdi(4 * kMiB);
  for (int nth = 1;; ++nth) {
    SCOPED_TRACE(nth);
    MemoryVdi image(bytes);
    ASSERT_TRUE(image.open().ok());
    image.file->fail_at({}, error_number, nth, repeat);
    std::string latest(4 * kMiB, '\0');
    std::string flushed = latest;
    std::vector<bool> unsure(latest.size());
    use(*image.driver, &flushed, &latest, &unsure);
    const bool failed = image.file->failure_count() > 0;
    image.file->clear_failures();

    std::string now = read_range(*image.driver, {0, latest.size()});
    ASSERT_EQ(now.size(), latest.size()) << now;
    for (size_t i = 0; i < latest.size(); ++i) {
      if (!unsure[i]) {
        ASSERT_EQ(now[i], latest[i]) << "byte " << i;
      }
    }
    // Nothing prevents the next flush from succeeding.
    EXPECT_TRUE(image.driver->close().ok());
    ASSERT_TRUE(image.open().ok());
    EXPECT_EQ(read_range(*image.driver, {0, now.size()}), now);
    EXPECT_EQ(check_bytes(image.memory->content())->corruptions, 0u);
    EXPECT_EQ(image.file->lock_violation_count(), 0u);
    if (!failed) break;
    ASSERT_LT(nth, 100);
  }
}

INSTANTIATE_TEST_SUITE_P(
    OnceAndFromThenOn, VdiErrors,
    ::testing::Combine(::testing::Values(EIO, ENOSPC),
                       ::testing::Values(Repeat::kOnce, Repeat::kFromThenOn)),
    [](const auto& info) {
      return absl::StrCat(
          std::get<0>(info.param) == EIO ? "eio" : "enospc",
          std::get<1>(info.param) == Repeat::kOnce ? "_once" : "_from_then_on");
    });

TEST(VdiDriver, ErrorsKeepTheirErrno) {
  MemoryVdi image(new_vdi(2 * kMiB));
  ASSERT_TRUE(image.open().ok());
  image.file->fail_at({.purpose = Purpose::kClusterAlloc}, ENOSPC);
  EXPECT_EQ(errno_of(write_fill(*image.driver, {0, 512}, 'a')), ENOSPC);
  image.file->fail_at({.purpose = Purpose::kL2Update}, EIO);
  EXPECT_TRUE(write_fill(*image.driver, {0, 512}, 'a').ok());
  EXPECT_EQ(errno_of(image.driver->flush()), EIO);
  EXPECT_TRUE(image.driver->flush().ok());
  EXPECT_EQ(map_entry(image, 0), 0u);
}

TEST(VdiDriver, OpeningReportsErrors) {
  for (const Purpose purpose : {Purpose::kHeaderLoad, Purpose::kL2Load}) {
    MemoryVdi image(new_vdi(2 * kMiB));
    image.file->fail_at({.purpose = purpose}, EIO);
    EXPECT_EQ(errno_of(image.open()), EIO);
  }
}

TEST(VdiDriver, AFullFileSystemStopsFirstWritesOnly) {
  MemoryVdi image(new_vdi(3 * kMiB), {.max_length_bytes = kFirstBlock + kMiB});
  ASSERT_TRUE(image.open().ok());
  ASSERT_TRUE(write_fill(*image.driver, {0, 512}, 'a').ok());
  EXPECT_EQ(errno_of(write_fill(*image.driver, {kMiB, 512}, 'b')), ENOSPC);
  ASSERT_TRUE(write_fill(*image.driver, {512, 512}, 'c').ok());
  EXPECT_EQ(read_range(*image.driver, {kMiB, 512}), std::string(512, '\0'));
  ASSERT_TRUE(image.driver->close().ok());
  EXPECT_EQ(check_bytes(image.memory->content())->corruptions, 0u);
}

// ---- Overlapping calls ------------------------------------------------------

TEST(VdiDriver, WritersOfOneBlockWaitForItsFirstWrite) {
  MemoryVdi image(new_vdi(2 * kMiB));
  ASSERT_TRUE(image.open().ok());
  auto stop = image.file->stop_at({.purpose = Purpose::kClusterAlloc});
  std::thread first(
      [&] { EXPECT_TRUE(write_fill(*image.driver, {0, 512}, 'a').ok()); });
  stop->wait_until_reached();
  std::thread second(
      [&] { EXPECT_TRUE(write_fill(*image.driver, {512, 512}, 'b').ok()); });
  // Others do not wait, and what is not written yet reads as before.
  EXPECT_TRUE(write_fill(*image.driver, {kMiB, 512}, 'c').ok());
  EXPECT_EQ(read_range(*image.driver, {0, 512}), std::string(512, '\0'));
  // Nor does a flush, which says nothing of writes that are under way.
  EXPECT_TRUE(image.driver->flush().ok());
  EXPECT_EQ(map_entry(image, 0), vdi::kFree);
  EXPECT_EQ(map_entry(image, 1), 1u);
  EXPECT_EQ(image.file->count(Purpose::kWriteAio), 0u);
  stop->resume();
  first.join();
  second.join();
  EXPECT_EQ(
      read_range(*image.driver, {0, 1536}),
      std::string(512, 'a') + std::string(512, 'b') + std::string(512, '\0'));
}

TEST(VdiDriver, AFailedFirstWriteLetsTheNextOneTry) {
  MemoryVdi image(new_vdi(2 * kMiB));
  ASSERT_TRUE(image.open().ok());
  auto stop = image.file->stop_at({.purpose = Purpose::kClusterAlloc});
  image.file->fail_at({.purpose = Purpose::kClusterAlloc}, EIO);
  std::thread first(
      [&] { EXPECT_FALSE(write_fill(*image.driver, {0, 512}, 'a').ok()); });
  stop->wait_until_reached();
  std::thread second(
      [&] { EXPECT_TRUE(write_fill(*image.driver, {512, 512}, 'b').ok()); });
  stop->resume();
  first.join();
  second.join();
  EXPECT_EQ(read_range(*image.driver, {0, 1024}),
            std::string(512, '\0') + std::string(512, 'b'));
  ASSERT_TRUE(image.driver->close().ok());
  EXPECT_EQ(map_entry(image, 0), 0u);
  EXPECT_EQ(check_bytes(image.memory->content())->corruptions, 0u);
}

// The second flush finds nothing to write, and must not say so before the
// first has written it.
TEST(VdiDriver, AFlushWaitsForTheOneBeforeIt) {
  MemoryVdi image(new_vdi(2 * kMiB));
  ASSERT_TRUE(image.open().ok());
  ASSERT_TRUE(write_fill(*image.driver, {0, 512}, 'a').ok());
  auto stop = image.file->stop_at({.purpose = Purpose::kL2Update});
  std::thread first([&] { EXPECT_TRUE(image.driver->flush().ok()); });
  stop->wait_until_reached();
  std::thread second([&] {
    EXPECT_TRUE(image.driver->flush().ok());
    EXPECT_EQ(map_entry(image, 0), 0u);
  });
  stop->resume();
  first.join();
  second.join();
}

}  // namespace
}  // namespace spindle::testing

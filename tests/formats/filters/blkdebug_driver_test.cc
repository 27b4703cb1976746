#include "formats/filters/blkdebug_driver.h"

#include <errno.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "formats/qcow2/qcow2_format.h"
#include "formats/raw/raw_format.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/memory_driver.h"

namespace spindle {
namespace {

using testing::MemoryDriver;
using testing::MemoryImage;
using testing::reads_as;
using testing::write_fill;

std::shared_ptr<MemoryDriver> memory(const std::string& content) {
  auto driver = std::make_shared<MemoryDriver>();
  driver->set_content(0, content);
  return driver;
}

std::shared_ptr<BlkdebugDriver> blkdebug(std::shared_ptr<BlockDriver> child,
                                         const BlkdebugConfig& config = {}) {
  auto driver = BlkdebugDriver::create(std::move(child), config);
  EXPECT_TRUE(driver.ok()) << driver.status();
  return *std::move(driver);
}

BlkdebugConfig inject(absl::string_view event, int error_number) {
  BlkdebugConfig config;
  config.errors.emplace_back();
  config.errors.back().event = blkdebug_event(event);
  config.errors.back().error_number = error_number;
  return config;
}

// A new qcow2 image of 1 MiB in memory, under blkdebug.
struct Image {
  Image() {
    MemoryImage made({});
    EXPECT_TRUE(made.close().ok());
    file = memory(made.memory().content());
    filter = blkdebug(file);
    auto opened = qcow2::qcow2_format()->open(filter, {}, {});
    EXPECT_TRUE(opened.ok()) << opened.status();
    driver = *std::move(opened);
  }
  std::shared_ptr<MemoryDriver> file;
  std::shared_ptr<BlkdebugDriver> filter;
  std::shared_ptr<BlockDriver> driver;
};

TEST(BlkdebugDriver, PassesThroughWhatNoRuleMeets) {
  const auto file = memory(std::string(8192, 'a'));
  const auto driver = blkdebug(file, inject("l2_load", EIO));
  EXPECT_EQ(driver->format_name(), "blkdebug");
  EXPECT_FALSE(driver->capabilities().has(Capability::kTryRead));
  EXPECT_TRUE(write_fill(*driver, {512, 512}, 'b').ok());
  EXPECT_TRUE(reads_as(*driver, {512, 512}, 'b'));
  EXPECT_TRUE(driver->write_zeroes({0, 512}, {}).ok());
  EXPECT_TRUE(driver->discard({4096, 4096}).ok());
  EXPECT_TRUE(driver->flush().ok());
  EXPECT_EQ(file->flush_count(), 1u);
}

TEST(BlkdebugDriver, EachKindOfRequestCanFail) {
  for (const absl::string_view name :
       {"read", "write", "write-zeroes", "discard", "flush", "block-status"}) {
    BlkdebugConfig config = inject("none", ENOSPC);
    config.errors[0].io = find_blkdebug_io(name);
    const auto driver = blkdebug(memory(std::string(8192, 'a')), config);
    const std::optional<int> failed[] = {
        errno_of(testing::read_bytes(*driver, {0, 512}).status()),
        errno_of(write_fill(*driver, {0, 512}, 1)),
        errno_of(driver->write_zeroes({0, 512}, {})),
        errno_of(driver->discard({0, 512})),
        errno_of(driver->flush()),
        errno_of(driver->block_status({0, 512}, BlockStatusScope::kThisLayer)
                     .status()),
    };
    for (size_t i = 0; i < std::size(failed); ++i) {
      const bool meant = i == static_cast<size_t>(*find_blkdebug_io(name));
      EXPECT_EQ(failed[i].value_or(0), meant ? ENOSPC : 0) << name << " " << i;
    }
  }
}

TEST(BlkdebugDriver, AFailedRequestDoesNotReachTheFile) {
  const auto file = memory(std::string(4096, 'a'));
  const auto driver = blkdebug(file, inject("pwritev", EIO));
  EXPECT_EQ(errno_of(write_fill(*driver, {0, 4096}, 'b')), EIO);
  EXPECT_EQ(file->content(), std::string(4096, 'a'));
}

// ---- Limits -----------------------------------------------------------------

TEST(BlkdebugDriver, HasTheLimitsThatWereAskedFor) {
  BlkdebugConfig config;
  config.limits = {.align = 4096,
                   .max_transfer = 65536,
                   .opt_write_zero = 15 << 20,
                   .max_write_zero = 0,
                   .opt_discard = 1 << 20,
                   .max_discard = 0};
  const DriverLimits limits = blkdebug(memory("a"), config)->limits();
  EXPECT_EQ(limits.request_alignment_bytes, 4096u);
  EXPECT_EQ(limits.max_transfer_bytes, 65536u);
  EXPECT_EQ(limits.write_zeroes_alignment_bytes, 1u << 20);
  EXPECT_EQ(limits.discard_alignment_bytes, 1u << 20);
  config.limits.align = 3;
  EXPECT_FALSE(BlkdebugDriver::create(memory("a"), config).ok());
}

// What the driver below is asked for.
class Counting : public MemoryDriver {
 public:
  absl::Status discard(ByteRange range) override {
    longest = std::max(longest, range.length);
    ++calls;
    return MemoryDriver::discard(range);
  }
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override {
    longest = std::max(longest, range.length);
    ++calls;
    return MemoryDriver::write_zeroes(range, flags);
  }
  uint64_t longest = 0;
  int calls = 0;
};

TEST(BlkdebugDriver, LongDiscardsAndZeroesComeInPieces) {
  const auto file = std::make_shared<Counting>();
  file->set_content(0, std::string(10000, 'a'));
  BlkdebugConfig config;
  config.limits.max_discard = 4096;
  config.limits.max_write_zero = 2048;
  const auto driver = blkdebug(file, config);
  EXPECT_TRUE(driver->discard({0, 10000}).ok());
  EXPECT_EQ(file->calls, 3);
  EXPECT_EQ(file->longest, 4096u);
  file->longest = 0;
  EXPECT_TRUE(driver->write_zeroes({0, 10000}, {}).ok());
  EXPECT_EQ(file->calls, 8);
  EXPECT_EQ(file->longest, 2048u);
  EXPECT_EQ(file->content(), std::string(10000, '\0'));
}

// A file of an odd length at a larger alignment: a format sees no difference.
TEST(BlkdebugDriver, TheLastSectorMayBeLongerThanTheFiles) {
  const auto file = memory(std::string(5000, 'a'));
  BlkdebugConfig config;
  config.limits.align = 4096;
  const auto driver = blkdebug(file, config);
  std::string bytes(8192, 'x');
  EXPECT_TRUE(driver->read(IoVector(bytes.data(), 8192), Sector(0)).ok());
  EXPECT_EQ(bytes, std::string(5000, 'a') + std::string(3192, '\0'));
  bytes.assign(4096, 'b');
  EXPECT_TRUE(driver->write(IoVector(bytes.data(), 4096), Sector(8)).ok());
  EXPECT_EQ(file->content(), std::string(4096, 'a') + std::string(904, 'b'));
  ByteChannel channel(driver);
  EXPECT_TRUE(channel.write(Purpose::kWriteAio, "cc", 2, 8999).ok());
  EXPECT_EQ(file->length_bytes(), 9001u);
  EXPECT_EQ(file->content({8999, 2}), "cc");
  EXPECT_EQ(file->content({4096, 904}), std::string(904, 'b'));
}

// ---- Under formats ----------------------------------------------------------

TEST(BlkdebugDriver, PurposesOfQcow2AreEvents) {
  const struct {
    absl::string_view event;
    int error_number;
  } cases[] = {{"write_aio", ENOSPC}, {"cluster_alloc", EIO}};
  for (const auto& one : cases) {
    Image image;
    BlkdebugInjectError rule = inject(one.event, one.error_number).errors[0];
    rule.once = true;
    image.filter->rules().add(rule);
    EXPECT_EQ(errno_of(write_fill(*image.driver, {0, 65536}, 1)),
              one.error_number)
        << one.event;
    EXPECT_TRUE(reads_as(*image.driver, {0, 65536}, 0));
    EXPECT_TRUE(write_fill(*image.driver, {0, 65536}, 2).ok());
    EXPECT_TRUE(reads_as(*image.driver, {0, 65536}, 2));
    EXPECT_TRUE(image.driver->close().ok());
    EXPECT_TRUE(testing::check_image_bytes(image.file->content(),
                                           testing::Leaks::kAllowed)
                    .ok());
  }
}

TEST(BlkdebugDriver, AFlushFailsAtTheL2Table) {
  Image image;
  BlkdebugInjectError rule = inject("l2_update", EIO).errors[0];
  rule.once = true;
  image.filter->rules().add(rule);
  EXPECT_TRUE(write_fill(*image.driver, {0, 65536}, 1).ok());
  EXPECT_EQ(errno_of(image.driver->flush()), EIO);
  EXPECT_TRUE(image.driver->flush().ok());
  EXPECT_TRUE(reads_as(*image.driver, {0, 65536}, 1));
  EXPECT_TRUE(image.driver->close().ok());
  EXPECT_TRUE(testing::check_image_bytes(image.file->content(),
                                         testing::Leaks::kForbidden)
                  .ok());
}

// A read of a cluster whose first write is stopped finds the old content, and
// finds the new one afterwards.
TEST(BlkdebugDriver, ARequestStopsAtABreakpoint) {
  Image image;
  BlkdebugRules& rules = image.filter->rules();
  rules.set_breakpoint(blkdebug_event("cluster_alloc"), "A");
  std::thread writer(
      [&] { EXPECT_TRUE(write_fill(*image.driver, {0, 65536}, 3).ok()); });
  rules.wait_until_suspended("A");
  EXPECT_TRUE(reads_as(*image.driver, {0, 65536}, 0));
  EXPECT_TRUE(write_fill(*image.driver, {131072, 65536}, 4).ok());
  EXPECT_TRUE(rules.resume("A").ok());
  writer.join();
  EXPECT_TRUE(reads_as(*image.driver, {0, 65536}, 3));
  EXPECT_TRUE(image.driver->close().ok());
}

TEST(BlkdebugDriver, ARawImageRaisesEventsToo) {
  const auto file = memory(std::string(8192, 'a'));
  const auto filter = blkdebug(file);
  const RawFormat raw({});
  const auto opened = raw.open(filter, {}, {});
  ASSERT_TRUE(opened.ok());
  BlockDriver& driver = **opened;
  EXPECT_EQ(driver.format_name(), "raw");
  const auto fails_once = [&](absl::string_view event) {
    BlkdebugInjectError rule = inject(event, ENOSPC).errors[0];
    rule.once = true;
    filter->rules().add(rule);
  };
  fails_once("read_aio");
  EXPECT_EQ(errno_of(testing::read_bytes(driver, {0, 512}).status()), ENOSPC);
  EXPECT_TRUE(reads_as(driver, {0, 512}, 'a'));
  fails_once("write_aio");
  EXPECT_EQ(errno_of(write_fill(driver, {0, 512}, 'b')), ENOSPC);
  EXPECT_TRUE(write_fill(driver, {0, 512}, 'b').ok());
  fails_once("pwritev_zero");
  EXPECT_EQ(errno_of(driver.write_zeroes({0, 512}, {})), ENOSPC);
  EXPECT_TRUE(driver.write_zeroes({0, 512}, {}).ok());
  fails_once("flush_to_disk");
  EXPECT_EQ(errno_of(driver.flush()), ENOSPC);
  EXPECT_TRUE(driver.flush().ok());
}

// Errors at random under four writers: what a write that succeeded wrote is
// there, and the image is sound.
TEST(BlkdebugDriver, ManyThreadsMeetErrorsAtRandom) {
  constexpr int kThreads = 4;
  Image image;
  BlkdebugInjectError rule = inject("cluster_alloc", ENOSPC).errors[0];
  rule.probability = 0.3;
  rule.io = BlkdebugIo::kWrite;
  image.filter->rules().add(rule);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&image, t] {
      for (int i = 0; i < 40; ++i) {
        const ByteRange own{static_cast<uint64_t>(i % 16) * 65536 +
                                static_cast<uint64_t>(t) * 4096,
                            4096};
        const auto value = static_cast<uint8_t>(i + 1);
        if (write_fill(*image.driver, own, value).ok()) {
          EXPECT_TRUE(reads_as(*image.driver, own, value));
        }
        if (i % 8 == 0) image.driver->flush().IgnoreError();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  BlkdebugInjectError none = inject("flush_to_disk", 0).errors[0];
  image.filter->rules().add(none);
  absl::Status status = image.driver->flush();
  for (int i = 0; i < 100 && !status.ok(); ++i) status = image.driver->flush();
  EXPECT_TRUE(image.driver->close().ok());
  EXPECT_TRUE(testing::check_image_bytes(image.file->content(),
                                         testing::Leaks::kAllowed)
                  .ok())
      << "seed " << image.filter->rules().seed();
}

}  // namespace
}  // namespace spindle

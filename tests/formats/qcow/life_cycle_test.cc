// Reopening, inactivating and activating an open qcow image.
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/block_driver.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/qcow/qcow_driver.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/support/memory_driver.h"

namespace spindle::testing {
namespace {

// Can be reopened and inactivated, and fails to when told so.
class Stored final : public MemoryDriver {
 public:
  explicit Stored(bool read_only)
      : MemoryDriver(options()), is_read_only(read_only) {}

  bool read_only() const override { return is_read_only; }
  absl::Status reopen(const ReopenOptions& options) override {
    if (std::exchange(fails_next, false)) return errno_status(EIO, "reopen");
    is_read_only = options.read_only;
    no_flush = options.no_flush.value_or(no_flush);
    return absl::OkStatus();
  }
  absl::Status inactivate() override {
    if (std::exchange(fails_next, false))
      return errno_status(EIO, "inactivate");
    is_active = false;
    return absl::OkStatus();
  }
  absl::Status activate() override {
    is_active = true;
    return absl::OkStatus();
  }

  bool is_read_only;
  bool no_flush = false;
  bool is_active = true;
  bool fails_next = false;

 private:
  static Options options() {
    Options options;
    options.capabilities.add(Capability::kReopen);
    options.capabilities.add(Capability::kInactivate);
    return options;
  }
};

class QcowLife : public ::testing::Test {
 protected:
  QcowLife() {
    backing_->set_content(0, std::string(4096, 'b'));
    file_->set_content(0, new_qcow({.backing_filename = "b"}));
    OpenContext context;
    context.open_child = [this](const ChildRequest&) {
      return absl::StatusOr<std::shared_ptr<BlockDriver>>(backing_);
    };
    auto opened = qcow::open_qcow(file_, OpenOptions(), context);
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (opened.ok()) driver_ = *std::move(opened);
  }
  absl::Status write(uint64_t sector, char fill) {
    std::string bytes(512, fill);
    return driver_->write(
        IoVector(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()),
        Sector(sector));
  }
  bool reads_as(uint64_t sector, char fill) {
    std::string bytes(512, '?');
    return driver_
               ->read(IoVector(reinterpret_cast<uint8_t*>(bytes.data()), 512),
                      Sector(sector))
               .ok() &&
           bytes == std::string(512, fill);
  }

  const std::shared_ptr<Stored> file_ = std::make_shared<Stored>(false);
  const std::shared_ptr<Stored> backing_ = std::make_shared<Stored>(true);
  std::shared_ptr<BlockDriver> driver_;
};

TEST_F(QcowLife, ReopensForReadingAndBack) {
  ASSERT_TRUE(write(0, 'x').ok());
  ASSERT_TRUE(driver_->reopen({.read_only = true}).ok());
  EXPECT_TRUE(driver_->read_only());
  EXPECT_TRUE(file_->is_read_only);
  // What was written is in the file.
  const auto copy = std::make_shared<MemoryDriver>();
  copy->set_content(0, file_->content());
  OpenContext context;
  context.open_child = [this](const ChildRequest&) {
    return absl::StatusOr<std::shared_ptr<BlockDriver>>(backing_);
  };
  const auto other = qcow::open_qcow(copy, OpenOptions(), context);
  ASSERT_TRUE(other.ok()) << other.status();
  std::string bytes(512, '?');
  ASSERT_TRUE(
      (*other)
          ->read(IoVector(reinterpret_cast<uint8_t*>(bytes.data()), 512),
                 Sector(0))
          .ok());
  EXPECT_EQ(bytes, std::string(512, 'x'));

  ASSERT_TRUE(driver_->reopen({.read_only = false}).ok());
  EXPECT_TRUE(write(1, 'y').ok());
  EXPECT_TRUE(reads_as(0, 'x') && reads_as(1, 'y') && reads_as(2, 'b'));
}

TEST_F(QcowLife, AReopenThatFailsLeavesEverythingAsItWas) {
  ReopenOptions options;
  options.no_flush = true;
  ASSERT_TRUE(driver_->reopen(options).ok());
  EXPECT_TRUE(file_->no_flush && backing_->no_flush);
  options.no_flush = false;
  options.read_only = true;
  // The backing file has been reopened when the image's own fails.
  file_->fails_next = true;
  EXPECT_EQ(errno_of(driver_->reopen(options)), EIO);
  EXPECT_TRUE(file_->no_flush && backing_->no_flush);
  EXPECT_TRUE(backing_->is_read_only);
  EXPECT_FALSE(driver_->read_only());
  EXPECT_TRUE(write(0, 'x').ok());
}

TEST_F(QcowLife, RefusesToChangeWhatItCannot) {
  ReopenOptions direct;
  direct.direct = true;
  EXPECT_TRUE(absl::IsUnimplemented(driver_->reopen(direct)));
  const absl::Status status =
      driver_->reopen({.driver_options = {{"l2-cache-size", "1M"}}});
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "l2-cache-size")) << status;
  EXPECT_TRUE(write(0, 'x').ok());
}

TEST_F(QcowLife, InactivatesAndReadsAnewWhatAnotherHasWritten) {
  ASSERT_TRUE(write(0, 'x').ok());
  ASSERT_TRUE(driver_->inactivate().ok());
  EXPECT_FALSE(file_->is_active);
  EXPECT_TRUE(absl::IsFailedPrecondition(write(0, 'z')));
  EXPECT_FALSE(reads_as(0, 'x'));
  // Another one empties the image.
  file_->set_content(0, new_qcow({.backing_filename = "b"}));
  ASSERT_TRUE(driver_->activate().ok());
  EXPECT_TRUE(reads_as(0, 'b'));
  EXPECT_TRUE(write(0, 'y').ok());
  EXPECT_TRUE(reads_as(0, 'y'));
}

TEST_F(QcowLife, StaysActiveWhereItCannotBeInactivated) {
  file_->fails_next = true;
  EXPECT_EQ(errno_of(driver_->inactivate()), EIO);
  EXPECT_TRUE(write(0, 'x').ok());
}

TEST_F(QcowLife, OverAnotherBackingFileItStaysInactive) {
  ASSERT_TRUE(driver_->inactivate().ok());
  file_->set_content(0, new_qcow({.backing_filename = "c"}));
  EXPECT_TRUE(absl::IsFailedPrecondition(driver_->activate()));
  EXPECT_FALSE(file_->is_active);
  EXPECT_TRUE(absl::IsFailedPrecondition(write(0, 'x')));
}

}  // namespace
}  // namespace spindle::testing

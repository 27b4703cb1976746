#include "formats/raw/window_driver.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "tests/support/memory_driver.h"

namespace spindle {
namespace {

using testing::MemoryDriver;

constexpr uint64_t kFileBytes = 16384;

// Takes whole blocks only once it bypasses the page cache.
class AlignedLater final : public MemoryDriver {
 public:
  AlignedLater() : MemoryDriver(options()) {}
  DriverLimits limits() const override {
    DriverLimits limits;
    limits.request_alignment_bytes = is_direct_ ? 4096 : 512;
    return limits;
  }
  absl::Status reopen(const ReopenOptions& options) override {
    if (fails_to_reopen) return absl::DataLossError("told to fail");
    is_direct_ = options.direct.value_or(is_direct_);
    return absl::OkStatus();
  }
  absl::Status read(const IoVector& qiov, Sector sector) override {
    return take(qiov, sector) ? MemoryDriver::read(qiov, sector) : refusal();
  }
  absl::Status write(const IoVector& qiov, Sector sector) override {
    return take(qiov, sector) ? MemoryDriver::write(qiov, sector) : refusal();
  }

  bool fails_to_reopen = false;

 private:
  static Options options() {
    Options options;
    options.length_bytes = kFileBytes;
    options.capabilities.add(Capability::kReopen);
    return options;
  }
  bool take(const IoVector& qiov, Sector sector) const {
    const uint64_t unit = limits().request_alignment_bytes;
    return sector.byte_offset() % unit == 0 && qiov.length_bytes() % unit == 0;
  }
  static absl::Status refusal() {
    return absl::InvalidArgumentError("not aligned");
  }

  bool is_direct_ = false;
};

std::string pattern() {
  std::string bytes(kFileBytes, '\0');
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<char>(i % 251);
  return bytes;
}

struct Window {
  explicit Window(OptionMap options) : file(std::make_shared<AlignedLater>()) {
    file->set_content(0, pattern());
    auto opened = apply_window(file, &options);
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (opened.ok()) driver = *std::move(opened);
  }
  std::string read(uint64_t sector, uint64_t bytes) const {
    std::string found(bytes, '?');
    const absl::Status status =
        driver->read(IoVector(reinterpret_cast<uint8_t*>(found.data()), bytes),
                     Sector(sector));
    EXPECT_TRUE(status.ok()) << status;
    return found;
  }
  void write(uint64_t sector, std::string bytes) const {
    const absl::Status status = driver->write(
        IoVector(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()),
        Sector(sector));
    EXPECT_TRUE(status.ok()) << status;
  }

  std::shared_ptr<AlignedLater> file;
  std::shared_ptr<BlockDriver> driver;
};

TEST(WindowDriver, ShowsAPartOfItsFile) {
  const Window window({{"offset", "1001"}, {"size", "1024"}});
  EXPECT_EQ(window.driver->length_bytes(), 1024u);
  EXPECT_EQ(window.read(0, 1024), pattern().substr(1001, 1024));
  EXPECT_EQ(window.read(1, 512), pattern().substr(1513, 512));
}

TEST(WindowDriver, ChangesNothingAroundIt) {
  const Window window({{"offset", "1001"}, {"size", "1024"}});
  window.write(1, std::string(512, 'x'));
  ASSERT_TRUE(window.driver->write_zeroes({0, 512}, {}).ok());
  const std::string before = pattern();
  EXPECT_EQ(window.file->content(),
            before.substr(0, 1001) + std::string(512, '\0') +
                std::string(512, 'x') + before.substr(2025));
}

TEST(WindowDriver, WithoutASizeItEndsWhereItsFileDoes) {
  const Window window({{"offset", "1000"}});
  EXPECT_EQ(window.driver->length_bytes(), kFileBytes - 1000);
  // The last sector is partial: what is behind the end reads as zeroes.
  const uint64_t last = (kFileBytes - 1000) / 512;
  const std::string tail = window.read(last, 512);
  const uint64_t there = (kFileBytes - 1000) % 512;
  EXPECT_EQ(tail.substr(0, there), pattern().substr(kFileBytes - there));
  EXPECT_EQ(tail.substr(there), std::string(512 - there, '\0'));
  ASSERT_TRUE(window.driver->set_length(2048, SetLengthMode::kExact).ok());
  EXPECT_EQ(window.file->length_bytes(), 3048u);
  EXPECT_EQ(window.driver->length_bytes(), 2048u);
  EXPECT_TRUE(absl::IsInvalidArgument(
      window.driver->set_length(~uint64_t{0}, SetLengthMode::kExact)));
}

TEST(WindowDriver, OfAFixedSizeCannotBeResized) {
  const Window window({{"size", "1024"}});
  EXPECT_TRUE(absl::IsUnimplemented(
      window.driver->set_length(2048, SetLengthMode::kExact)));
  EXPECT_EQ(window.file->length_bytes(), kFileBytes);
}

TEST(WindowDriver, RefusesWhatDoesNotLieInTheFile) {
  const struct {
    OptionMap options;
    const char* says;
  } cases[] = {
      {{{"offset", "16385"}}, "Offset (16385) cannot be greater than size"},
      {{{"offset", "512"}, {"size", "16384"}}, "offset (512) and size (16384)"},
      {{{"size", "18446744073709551104"}}, "size (18446744073709551104)"},
      {{{"size", "513"}}, "not multiple of 512"},
      {{{"offset", "x"}}, "'offset'"},
  };
  for (const auto& one : cases) {
    const auto file = std::make_shared<AlignedLater>();
    OptionMap options = one.options;
    const auto window = apply_window(file, &options);
    ASSERT_FALSE(window.ok()) << one.says;
    EXPECT_TRUE(absl::StrContains(window.status().message(), one.says))
        << window.status();
  }
}

TEST(WindowDriver, GoesByTheAlignmentThatItsFileHasNow) {
  const Window window({{"offset", "512"}});
  ReopenOptions direct;
  direct.direct = true;
  window.file->fails_to_reopen = true;
  EXPECT_FALSE(window.driver->reopen(direct).ok());
  window.write(0, std::string(512, 'a'));
  window.file->fails_to_reopen = false;
  ASSERT_TRUE(window.driver->reopen(direct).ok());
  window.write(1, std::string(512, 'b'));
  EXPECT_EQ(window.read(0, 1024),
            std::string(512, 'a') + std::string(512, 'b'));
  direct.direct = false;
  ASSERT_TRUE(window.driver->reopen(direct).ok());
  EXPECT_EQ(window.read(2, 512), pattern().substr(1536, 512));
}

}  // namespace
}  // namespace spindle

#include "formats/filters/null_driver.h"

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

absl::StatusOr<std::shared_ptr<BlockDriver>> open_null(const OptionMap& own) {
  OpenOptions options;
  options.driver_options = own;
  return null_co_filter()->open(nullptr, options);
}

TEST(NullDriver, IsAGibibyteThatKeepsNothing) {
  const auto driver = open_null({});
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->length_bytes(), uint64_t{1} << 30);
  EXPECT_EQ((*driver)->format_name(), "null-co");
  EXPECT_EQ((*driver)->filename(), "null-co://");
  std::string bytes(512, 'a');
  const IoVector qiov(bytes.data(), bytes.size());
  EXPECT_TRUE((*driver)->write(qiov, Sector(1)).ok());
  bytes.assign(512, 'b');
  EXPECT_TRUE((*driver)->read(qiov, Sector(1)).ok());
  EXPECT_EQ(bytes, std::string(512, 'b'));
  EXPECT_EQ((*driver)->try_read(qiov, Sector(1)), 512u);
  EXPECT_EQ(bytes, std::string(512, 'b'));
  EXPECT_TRUE((*driver)->flush().ok());
  const auto status =
      (*driver)->block_status({0, 1024}, BlockStatusScope::kWholeChain);
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(status->length, 1024u);
  EXPECT_FALSE(status->allocated || status->data || status->zero);
}

TEST(NullDriver, ReadsZeroesIfAsked) {
  const auto driver = open_null({{"size", "1M"}, {"read-zeroes", "on"}});
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->length_bytes(), uint64_t{1} << 20);
  std::string bytes(512, 'a');
  const IoVector qiov(bytes.data(), bytes.size());
  EXPECT_TRUE((*driver)->read(qiov, Sector(0)).ok());
  EXPECT_EQ(bytes, std::string(512, '\0'));
  bytes.assign(512, 'a');
  EXPECT_EQ((*driver)->try_read(qiov, Sector(0)), 512u);
  EXPECT_EQ(bytes, std::string(512, '\0'));
  const auto status =
      (*driver)->block_status({512, 512}, BlockStatusScope::kWholeChain);
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->zero && status->allocated);
  EXPECT_EQ(status->host_offset, 512u);
}

TEST(NullDriver, TakesItsTime) {
  const auto driver = open_null({{"latency-ns", "2000000"}});
  ASSERT_TRUE(driver.ok()) << driver.status();
  std::string bytes(512, 'a');
  const IoVector qiov(bytes.data(), bytes.size());
  EXPECT_EQ((*driver)->try_read(qiov, Sector(0)), 0u);
  EXPECT_EQ((*driver)->try_write(qiov, Sector(0)), 0u);
  const absl::Time begin = absl::Now();
  EXPECT_TRUE((*driver)->read(qiov, Sector(0)).ok());
  EXPECT_TRUE((*driver)->write(qiov, Sector(0)).ok());
  EXPECT_TRUE((*driver)->flush().ok());
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(6));
}

TEST(NullDriver, CanBecomeReadOnly) {
  OpenOptions options;
  options.read_only = true;
  const auto driver = null_aio_filter()->open(nullptr, options);
  ASSERT_TRUE(driver.ok());
  EXPECT_EQ((*driver)->format_name(), "null-aio");
  EXPECT_TRUE((*driver)->read_only());
  EXPECT_TRUE((*driver)->reopen({.read_only = false}).ok());
  EXPECT_FALSE((*driver)->read_only());
}

TEST(NullDriver, RefusesOptionsThatMakeNoSense) {
  const struct {
    OptionMap options;
    absl::string_view says;
  } cases[] = {
      {{{"foo", "1"}}, "does not support the option 'foo'"},
      {{{"size", "-5"}}, "'size'"},
      {{{"size", "9223372036854775808"}}, "size is invalid"},
      {{{"latency-ns", "-1"}}, "latency-ns is invalid"},
      {{{"latency-ns", "9223372036854775808"}}, "latency-ns is invalid"},
      {{{"read-zeroes", "maybe"}}, "'read-zeroes'"},
  };
  for (const auto& one : cases) {
    const auto driver = open_null(one.options);
    ASSERT_FALSE(driver.ok()) << one.says;
    EXPECT_EQ(driver.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(driver.status().message(), one.says))
        << driver.status();
  }
}

}  // namespace
}  // namespace spindle

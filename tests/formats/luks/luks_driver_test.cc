#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/secret_store.h"
#include "formats/luks/header.h"
#include "formats/luks/luks_format.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::luks {
namespace {

using ::spindle::testing::MemoryDriver;
using ::spindle::testing::ObservingDriver;
using Driver = std::shared_ptr<BlockDriver>;

constexpr uint64_t kSize = uint64_t{1} << 20;
// Where the data of aes-256-xts begin.
constexpr uint64_t kPayload = 2068480;

std::shared_ptr<const SecretStore> secrets() {
  auto store = std::make_shared<SecretStore>();
  for (const char* text : {"secret,id=good,data=good", "secret,id=bad,data=bad",
                           "secret,id=new,data=new", "secret,id=empty,data="})
    EXPECT_TRUE(store->add_object(text).ok());
  return store;
}

absl::Status create_in(const Driver& file, OptionMap more = {}) {
  CreateOptions options;
  options.size_bytes = kSize;
  options.secrets = secrets();
  options.options = {{"key-secret", "good"}, {"iter-time", "1"}};
  for (const auto& [name, value] : more) options.options[name] = value;
  absl::Status status = luks_format()->check_create(options);
  return status.ok() ? luks_format()->create(file, options, {}) : status;
}

absl::StatusOr<Driver> open_as(const Driver& file, const std::string& secret) {
  OpenOptions options;
  options.driver_options["key-secret"] = secret;
  OpenContext context;
  context.secrets = secrets();
  return luks_format()->open(file, options, context);
}

absl::Status amend(BlockDriver& image, OptionMap changes, bool force = false) {
  AmendOptions options;
  options.changes = std::move(changes);
  options.force = force;
  return image.amend(options);
}

class Luks : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(create_in(file_).ok());
    const auto image = open_as(file_, "good");
    ASSERT_TRUE(image.ok()) << image.status();
    image_ = *image;
  }
  bool opens(const std::string& secret) const {
    return open_as(file_, secret).ok();
  }

  const std::shared_ptr<MemoryDriver> memory_ =
      std::make_shared<MemoryDriver>();
  const std::shared_ptr<ObservingDriver> file_ =
      std::make_shared<ObservingDriver>(memory_);
  Driver image_;
};

std::vector<uint8_t> pattern(size_t bytes, uint8_t seed) {
  std::vector<uint8_t> data(bytes);
  for (size_t i = 0; i < bytes; ++i)
    data[i] = static_cast<uint8_t>(seed + i * 7 + i / 512);
  return data;
}

TEST_F(Luks, ReadsWhatItWroteAndStoresSomethingElse) {
  EXPECT_EQ(image_->length_bytes(), kSize);
  // Longer than one piece, in ragged segments.
  std::vector<uint8_t> data = pattern(600 * 1024, 3);
  const std::vector<uint8_t> before = data;
  const IoVector pieces({iovec{data.data(), 1000},
                         iovec{data.data() + 1000, 300000},
                         iovec{data.data() + 301000, data.size() - 301000}});
  ASSERT_TRUE(image_->write(pieces, Sector(7)).ok());
  EXPECT_EQ(data, before) << "the caller's memory must not change";
  std::vector<uint8_t> back(data.size());
  ASSERT_TRUE(image_->read(IoVector(back.data(), back.size()), Sector(7)).ok());
  EXPECT_EQ(back, before);
  const std::string stored =
      memory_->content({kPayload + 7 * 512, back.size()});
  EXPECT_NE(stored, std::string(before.begin(), before.end()));
}

TEST_F(Luks, TryReadDecrypts) {
  std::vector<uint8_t> data = pattern(4096, 1);
  ASSERT_TRUE(
      image_->write(IoVector(data.data(), data.size()), Sector(8)).ok());
  // Without an observer nothing stands in the way of try_read().
  const auto direct = open_as(memory_, "good");
  ASSERT_TRUE(direct.ok());
  std::vector<uint8_t> back(4096);
  EXPECT_EQ((*direct)->try_read(IoVector(back.data(), back.size()), Sector(8)),
            4096U);
  EXPECT_EQ(back, data);
  std::vector<uint8_t> large(64 * 1024);
  EXPECT_EQ(
      (*direct)->try_read(IoVector(large.data(), large.size()), Sector(8)), 0U);
}

TEST_F(Luks, AWrongPasswordIsAClearErrorAndWritesNothing) {
  const std::string before = memory_->content();
  const auto image = open_as(file_, "bad");
  EXPECT_EQ(image.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(absl::StrContains(image.status().message(), "password"));
  EXPECT_EQ(memory_->content(), before);
  EXPECT_TRUE(
      absl::StrContains(open_as(file_, "gone").status().message(), "gone"));
  OpenOptions without;
  EXPECT_TRUE(absl::StrContains(
      luks_format()->open(file_, without, {}).status().message(),
      "key-secret"));
}

TEST_F(Luks, DamagedKeyMaterialOpensNothing) {
  memory_->set_content(4096 + 100, "x");
  const std::string before = memory_->content();
  EXPECT_EQ(open_as(file_, "good").status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(memory_->content(), before);
}

TEST_F(Luks, SlotsAreAddedAndErased) {
  OptionMap add = {
      {"state", "active"}, {"new-secret", "new"}, {"iter-time", "1"}};
  ASSERT_TRUE(amend(*image_, add).ok());
  EXPECT_TRUE(opens("good") && opens("new"));
  const absl::Status taken = amend(*image_, {{"state", "active"},
                                             {"new-secret", "bad"},
                                             {"keyslot", "1"},
                                             {"iter-time", "1"}});
  EXPECT_TRUE(absl::StrContains(taken.message(), "slot 1 is active")) << taken;
  ASSERT_TRUE(
      amend(*image_, {{"state", "inactive"}, {"old-secret", "good"}}).ok());
  EXPECT_FALSE(opens("good"));
  EXPECT_TRUE(opens("new"));
  // The image that is open goes on.
  add["new-secret"] = "bad";
  add["keyslot"] = "7";
  ASSERT_TRUE(amend(*image_, add).ok());
  EXPECT_TRUE(opens("bad"));
}

TEST_F(Luks, TheLastSlotIsErasedOnlyByForce) {
  const OptionMap erase = {{"state", "inactive"}, {"keyslot", "0"}};
  EXPECT_EQ(amend(*image_, erase).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(
      amend(*image_, {{"state", "inactive"}, {"old-secret", "good"}}).code(),
      absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(opens("good"));
  const std::string material = memory_->content({4096, 256000});
  ASSERT_TRUE(amend(*image_, erase, /*force=*/true).ok());
  EXPECT_FALSE(opens("good"));
  const std::string after = memory_->content({4096, 256000});
  size_t same = 0;
  for (size_t i = 0; i < after.size(); ++i) same += after[i] == material[i];
  EXPECT_LT(same, after.size() / 100) << "key material must be overwritten";
}

TEST_F(Luks, AmendRefusesWhatMakesNoSense) {
  const struct {
    OptionMap changes;
    const char* says;
  } kCases[] = {
      {{}, "'state'"},
      {{{"state", "sleeping"}}, "sleeping"},
      {{{"state", "active"}}, "new-secret"},
      {{{"state", "active"}, {"new-secret", "gone"}}, "gone"},
      {{{"state", "active"}, {"new-secret", "new"}, {"keyslot", "8"}}, "8"},
      {{{"state", "active"}, {"new-secret", "new"}, {"iter-time", "99999999"}},
       "iter-time"},
      {{{"state", "active"}, {"new-secret", "new"}, {"old-secret", "good"}},
       "old-secret"},
      {{{"state", "inactive"}}, "keyslot"},
      {{{"state", "inactive"}, {"keyslot", "3"}}, "3 is inactive"},
      {{{"state", "inactive"}, {"old-secret", "bad"}}, "old-secret"},
      {{{"state", "inactive"}, {"keyslot", "0"}, {"old-secret", "bad"}},
       "slot 0"},
      {{{"state", "inactive"}, {"keyslot", "0"}, {"new-secret", "new"}},
       "new-secret"},
      {{{"colour", "red"}}, "colour"},
  };
  const std::string before = memory_->content();
  for (const auto& c : kCases) {
    const absl::Status status = amend(*image_, c.changes);
    EXPECT_FALSE(status.ok()) << c.says;
    EXPECT_TRUE(absl::StrContains(status.message(), c.says)) << status;
  }
  EXPECT_EQ(memory_->content(), before);
}

TEST_F(Luks, AllSlotsCanBeFilled) {
  const OptionMap add = {
      {"state", "active"}, {"new-secret", "new"}, {"iter-time", "1"}};
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(amend(*image_, add).ok()) << i;
  EXPECT_EQ(amend(*image_, add).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(opens("new") && opens("good"));
}

// Every I/O of an addition fails once: afterwards the old password opens, and
// the new one does if and only if the call said so.
TEST_F(Luks, AnErrorWhileASlotIsAddedLeavesTheImageAsItWas) {
  for (int nth = 1;; ++nth) {
    ASSERT_LT(nth, 50);
    file_->fail_at({}, EIO, nth);
    const uint64_t failed_before = file_->failure_count();
    const absl::Status status =
        amend(*image_,
              {{"state", "active"}, {"new-secret", "new"}, {"iter-time", "1"}});
    const bool hit = file_->failure_count() != failed_before;
    file_->clear_failures();
    EXPECT_EQ(status.ok(), !hit) << status;
    EXPECT_TRUE(opens("good"));
    EXPECT_EQ(opens("new"), status.ok());
    if (!hit) break;
  }
}

TEST_F(Luks, AnErrorWhileASlotIsErasedSparesTheOthers) {
  ASSERT_TRUE(
      amend(*image_,
            {{"state", "active"}, {"new-secret", "new"}, {"iter-time", "1"}})
          .ok());
  for (int nth = 1;; ++nth) {
    ASSERT_LT(nth, 50);
    file_->fail_at({}, EIO, nth);
    const uint64_t failed_before = file_->failure_count();
    const absl::Status status =
        amend(*image_, {{"state", "inactive"}, {"keyslot", "0"}});
    const bool hit = file_->failure_count() != failed_before;
    file_->clear_failures();
    EXPECT_TRUE(opens("new"));
    if (!hit) {
      // Earlier failures may have erased it already.
      break;
    }
    EXPECT_FALSE(status.ok());
  }
  EXPECT_FALSE(opens("good"));
}

TEST(LuksCreate, AnErrorLeavesNoVolume) {
  for (int nth = 1;; ++nth) {
    ASSERT_LT(nth, 50);
    const auto memory = std::make_shared<MemoryDriver>();
    const auto file = std::make_shared<ObservingDriver>(memory);
    file->fail_at({}, ENOSPC, nth);
    const absl::Status status = create_in(file);
    const bool hit = file->failure_count() != 0;
    file->clear_failures();
    EXPECT_EQ(status.ok(), !hit);
    if (!hit) break;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  }
}

TEST(LuksCreate, RefusesWhatCannotBe) {
  const struct {
    OptionMap options;
    const char* says;
  } kCases[] = {
      {{{"cipher-alg", "rot13"}}, "rot13"},
      {{{"cipher-mode", "ctr"}}, "ctr"},
      {{{"hash-alg", "crc32"}}, "crc32"},
      {{{"ivgen-alg", "random"}}, "random"},
      {{{"ivgen-alg", "essiv"}, {"ivgen-hash-alg", "sha1"}}, "160 bits"},
      {{{"cipher-alg", "twofish-192"}}, "192 bits"},
      {{{"iter-time", "99999999"}}, "iter-time"},
      {{{"key-secret", "gone"}}, "gone"},
  };
  for (const auto& c : kCases) {
    const auto memory = std::make_shared<MemoryDriver>();
    const absl::Status status = create_in(memory, c.options);
    EXPECT_FALSE(status.ok());
    EXPECT_TRUE(absl::StrContains(status.message(), c.says)) << status;
    EXPECT_EQ(memory->length_bytes(), 0U);
  }
}

TEST(LuksCreate, AnEmptyPassphraseIsOne) {
  const auto memory = std::make_shared<MemoryDriver>();
  ASSERT_TRUE(create_in(memory, {{"key-secret", "empty"}}).ok());
  EXPECT_TRUE(open_as(memory, "empty").ok());
  EXPECT_FALSE(open_as(memory, "good").ok());
}

TEST_F(Luks, GrowsAndShrinks) {
  ASSERT_TRUE(image_->set_length(2 * kSize, SetLengthMode::kExact).ok());
  EXPECT_EQ(image_->length_bytes(), 2 * kSize);
  EXPECT_EQ(memory_->length_bytes(), kPayload + 2 * kSize);
  ASSERT_TRUE(image_->set_length(512, SetLengthMode::kExact).ok());
  EXPECT_EQ(image_->length_bytes(), 512U);
  EXPECT_FALSE(image_->set_length(UINT64_MAX - 5, SetLengthMode::kExact).ok());
  EXPECT_EQ(image_->length_bytes(), 512U);
}

// Eight threads write and read their own parts while slots come and go.
TEST_F(Luks, ThreadsReadAndWriteWhileSlotsChange) {
  std::vector<std::thread> threads;
  for (uint8_t number = 0; number < 8; ++number) {
    threads.emplace_back([this, number] {
      const uint64_t first = number * (kSize / 8);
      for (int round = 0; round < 40; ++round) {
        std::vector<uint8_t> data =
            pattern(kSize / 8, static_cast<uint8_t>(number * 31 + round));
        const std::vector<uint8_t> wanted = data;
        const Sector sector = Sector::from_byte_offset(first);
        ASSERT_TRUE(
            image_->write(IoVector(data.data(), data.size()), sector).ok());
        ASSERT_EQ(data, wanted);
        std::vector<uint8_t> back(data.size());
        ASSERT_TRUE(
            image_->read(IoVector(back.data(), back.size()), sector).ok());
        ASSERT_EQ(back, wanted);
      }
    });
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(
        amend(*image_,
              {{"state", "active"}, {"new-secret", "new"}, {"iter-time", "1"}})
            .ok());
    EXPECT_EQ(image_->info().format, "luks");
    EXPECT_TRUE(
        amend(*image_, {{"state", "inactive"}, {"old-secret", "new"}}).ok());
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(opens("good"));
  EXPECT_FALSE(opens("new"));
}

}  // namespace
}  // namespace spindle::luks

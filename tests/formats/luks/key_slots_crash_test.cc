// Power cuts while key slots change.
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/format.h"
#include "engine/secret_store.h"
#include "formats/luks/key_slots.h"
#include "formats/luks/layout.h"
#include "formats/luks/luks_format.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"

namespace spindle::luks {
namespace {

using ::spindle::testing::CutDisk;
using ::spindle::testing::LoggingDriver;
using ::spindle::testing::MemoryDriver;
using Driver = std::shared_ptr<BlockDriver>;

OpenContext context() {
  auto secrets = std::make_shared<SecretStore>();
  for (const char* text :
       {"secret,id=first,data=first", "secret,id=second,data=second"})
    EXPECT_TRUE(secrets->add_object(text).ok());
  OpenContext context;
  context.secrets = std::move(secrets);
  return context;
}

absl::StatusOr<Driver> open_as(const Driver& file, const std::string& secret) {
  OpenOptions options;
  options.driver_options["key-secret"] = secret;
  return luks_format()->open(file, options, context());
}

bool opens(const std::string& bytes, const std::string& secret) {
  const auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, bytes);
  return open_as(file, secret).ok();
}

bool is_active(const std::string& bytes, size_t slot) {
  const auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, bytes);
  ByteChannel channel(file);
  const auto header = read_header({&channel}, bytes.size());
  EXPECT_TRUE(header.ok()) << header.status();
  return header.ok() && header->slots[slot].active;
}

// A volume that "first" opens.
std::string new_volume() {
  const auto file = std::make_shared<MemoryDriver>();
  CreateOptions options;
  options.size_bytes = 4096;
  options.secrets = context().secrets;
  options.options = {{"key-secret", "first"},
                     {"iter-time", "0"},
                     {"cipher-alg", "aes-128"},
                     {"cipher-mode", "cbc"}};
  EXPECT_TRUE(luks_format()->create(file, options, {}).ok());
  return file->content();
}

struct Story {
  std::string before;
  std::shared_ptr<LoggingDriver> log;
};

Story amended(const std::string& volume, OptionMap changes) {
  Story story{volume, std::make_shared<LoggingDriver>(
                          volume, [](int) { return true; })};
  const auto image = open_as(story.log, "first");
  EXPECT_TRUE(image.ok()) << image.status();
  AmendOptions options;
  options.changes = std::move(changes);
  EXPECT_TRUE((*image)->amend(options).ok());
  return story;
}

template <typename Judge>
void for_each_cut(const Story& story, Judge judge) {
  std::mt19937_64 random(testing::test_seed());
  const size_t moments = story.log->entries().size();
  EXPECT_GT(moments, 3U);
  CutDisk disk(story.before, story.log->entries());
  for (size_t moment = 0; moment <= moments; ++moment) {
    for (int again = 0; again < 4; ++again) {
      SCOPED_TRACE(absl::StrCat("cut after ", moment, " of ", moments));
      judge(disk.cut(moment, &random));
    }
  }
}

TEST(KeySlotsCrash, ASlotThatIsAddedOpensOrIsInactive) {
  const Story story = amended(
      new_volume(),
      {{"state", "active"}, {"new-secret", "second"}, {"iter-time", "0"}});
  for_each_cut(story, [](const std::string& bytes) {
    EXPECT_TRUE(opens(bytes, "first"));
    EXPECT_EQ(opens(bytes, "second"), is_active(bytes, 1));
  });
}

TEST(KeySlotsCrash, WhatAnInactiveSlotHeldIsGone) {
  const Story added = amended(
      new_volume(),
      {{"state", "active"}, {"new-secret", "second"}, {"iter-time", "0"}});
  std::mt19937_64 random(1);
  const size_t moments = added.log->entries().size();
  const std::string both =
      CutDisk(added.before, added.log->entries()).cut(moments, &random);
  ASSERT_TRUE(opens(both, "first") && opens(both, "second"));
  const Story story = amended(both, {{"state", "inactive"}, {"keyslot", "0"}});
  for_each_cut(story, [&](std::string bytes) {
    EXPECT_TRUE(opens(bytes, "second"));
    if (is_active(bytes, 0)) return;
    // Whoever knows the slot's salt and passphrase has nothing to try them on.
    bytes.replace(kSlotsOffset, kSlotBytes, both, kSlotsOffset, kSlotBytes);
    ASSERT_TRUE(is_active(bytes, 0));
    EXPECT_FALSE(opens(bytes, "first"));
  });
}

}  // namespace
}  // namespace spindle::luks

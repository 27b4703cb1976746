#include "formats/qcow2/qcow2_format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/types/span.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/memory_driver.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryDriver;
using testing::qemu_image_bytes;

constexpr uint64_t kMib = uint64_t{1} << 20;

int probe(const std::string& head) {
  return qcow2_format()->probe(
      {reinterpret_cast<const uint8_t*>(head.data()), head.size()}, "name");
}

CreateOptions create_of(uint64_t size_bytes, const OptionMap& options = {}) {
  CreateOptions create;
  create.size_bytes = size_bytes;
  create.options = options;
  return create;
}

TEST(Qcow2Format, IsOneObjectWithAName) {
  EXPECT_EQ(qcow2_format(), qcow2_format());
  EXPECT_EQ(qcow2_format()->name(), "qcow2");
  EXPECT_TRUE(qcow2_format()->supports_backing());
  EXPECT_EQ(qcow2_format()->initial_file_length(create_of(kMib)), 0u);
}

TEST(Qcow2Format, RecognisesVersionsFrom2OnAndNothingElse) {
  for (const char* options : {"compat=0.10", "compat=1.1"}) {
    const std::string image = qemu_image_bytes(kMib, options);
    EXPECT_EQ(probe(image), 100);
    EXPECT_EQ(probe(image.substr(0, 72)), 100);
    for (size_t length = 0; length < 72; ++length)
      EXPECT_EQ(probe(image.substr(0, length)), 0) << length;
    std::string other = image;
    for (char version : {0, 1}) {
      other[7] = version;
      EXPECT_EQ(probe(other), 0) << int{version};
    }
    // Refused when it is opened, and not taken for raw.
    other[7] = 4;
    EXPECT_EQ(probe(other), 100);
    other = image;
    other[3] ^= 1;
    EXPECT_EQ(probe(other), 0);
  }
  EXPECT_EQ(probe(std::string(65536, '\0')), 0);
}

TEST(Qcow2Format, CreatesWhatQemuCreatesAndOpensIt) {
  auto memory = std::make_shared<MemoryDriver>();
  const CreateOptions create =
      create_of(16 * kMib, {{"cluster_size", "4k"}, {"compat", "v2"}});
  ASSERT_TRUE(qcow2_format()->check_create(create).ok());
  ASSERT_TRUE(qcow2_format()->create(memory, create, {}).ok());
  EXPECT_TRUE(memory->content() ==
              qemu_image_bytes(16 * kMib, "cluster_size=4k,compat=v2"));
  const auto driver = qcow2_format()->open(memory, {}, {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->format_name(), "qcow2");
  EXPECT_EQ((*driver)->length_bytes(), 16 * kMib);
  EXPECT_TRUE(testing::reads_as(**driver, {0, kMib}, 0));
}

TEST(Qcow2Format, DoesNotOpenWhatIsNone) {
  auto memory = std::make_shared<MemoryDriver>();
  for (const std::string& content :
       {std::string(), std::string(512, 'x'), std::string(65536, '\0')}) {
    memory->set_content(0, content);
    EXPECT_FALSE(qcow2_format()->open(memory, {}, {}).ok());
    EXPECT_TRUE(memory->content() == content);
  }
}

// check_create() says beforehand what create() would say, and create() then
// touches nothing.
TEST(Qcow2Format, RefusesOptionsBeforeItTouchesTheFile) {
  const struct {
    const char* name;
    const char* value;
    absl::StatusCode code;
  } cases[] = {
      {"cluster_size", "1000", absl::StatusCode::kInvalidArgument},
      {"refcount_bits", "3", absl::StatusCode::kInvalidArgument},
      {"compat", "0.9", absl::StatusCode::kInvalidArgument},
      {"preallocation", "some", absl::StatusCode::kInvalidArgument},
      {"no_such", "1", absl::StatusCode::kInvalidArgument},
      {"compression_type", "lz4", absl::StatusCode::kInvalidArgument},
      {"extended_l2", "maybe", absl::StatusCode::kInvalidArgument},
      {"encryption", "on", absl::StatusCode::kInvalidArgument},
      {"data_file_raw", "on", absl::StatusCode::kInvalidArgument},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const CreateOptions create = create_of(kMib, {{c.name, c.value}});
    const absl::Status checked = qcow2_format()->check_create(create);
    EXPECT_EQ(checked.code(), c.code) << checked;
    auto memory = std::make_shared<MemoryDriver>();
    memory->set_content(0, "old");
    EXPECT_EQ(qcow2_format()->create(memory, create, {}), checked);
    EXPECT_EQ(memory->content(), "old");
  }
}

TEST(Qcow2Format, ListsItsOptionsInOrderAndEachOnce) {
  const std::vector<OptionHelp> options = qcow2_format()->create_options();
  for (size_t i = 1; i < options.size(); ++i) {
    EXPECT_LT(absl::string_view(options[i - 1].name),
              absl::string_view(options[i].name));
  }
  for (const char* name :
       {"backing_file", "backing_fmt", "cluster_size", "compat",
        "lazy_refcounts", "preallocation", "refcount_bits", "size"}) {
    EXPECT_TRUE(std::any_of(
        options.begin(), options.end(),
        [&](const OptionHelp& option) { return option.name == name; }))
        << name;
  }
}

}  // namespace
}  // namespace spindle::qcow2

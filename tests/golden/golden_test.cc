// Images that QEMU made, and what QEMU read, said and found in them (make.sh).
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/io_vector.h"
#include "nlohmann/json.hpp"
#include "tests/differential/our_image.h"
#include "tests/support/qemu_tools.h"

NLOHMANN_JSON_NAMESPACE_BEGIN
// What tests are called in messages.
static void PrintTo(const ordered_json& entry, std::ostream* out) {
  *out << entry["name"];
}
NLOHMANN_JSON_NAMESPACE_END

namespace spindle::testing {
namespace {

using Json = nlohmann::ordered_json;
using Bytes = std::vector<uint8_t>;

bool is_qcow(const Json& entry) {
  return absl::EndsWith(entry["name"].get<std::string>(), ".qcow");
}

// LUKS volumes have none, and of qcow images only we have one.
bool has_check(const Json& entry) { return entry.contains("check"); }
int check_exit_code(const Json& entry) {
  if (is_qcow(entry)) return entry["name"] == "qcow-damaged.qcow" ? 2 : 0;
  return entry["check-exit-code"].get<int>();
}

// What is wrong with these is not to be written over.
bool is_sound(const Json& entry) {
  return entry["name"] != "corrupt.qcow2" &&
         (has_check(entry) || is_qcow(entry)) &&
         (check_exit_code(entry) == 0 || entry["name"] == "dirty.qcow2");
}

std::string workspace_path(const std::string& path) {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/", path);
}

std::vector<Json> manifest() {
  std::ifstream file(workspace_path("tests/golden/manifest.json"));
  const Json all = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  return std::vector<Json>(all.begin(), all.end());
}

void shell(const std::string& script, const std::vector<std::string>& names) {
  std::vector<std::string> arguments = {"sh", "-ec", script, "sh"};
  arguments.insert(arguments.end(), names.begin(), names.end());
  const auto result = run_tool_ok(arguments);
  ASSERT_TRUE(result.ok()) << result.status();
}

// A folder with all images, which no test changes.
const std::string& folder() {
  static const std::string* const made = [] {
    auto* path = new std::string(temporary_path("golden"));
    shell(
        "mkdir \"$2\"; for file in \"$1\"/*.gz; do"
        " gzip -dc \"$file\" |"
        " cp --sparse=always /dev/stdin \"$2/$(basename \"$file\" .gz)\"; done",
        {workspace_path("tests/golden/images"), *path});
    return path;
  }();
  return *made;
}

class Golden : public ::testing::TestWithParam<Json> {
 protected:
  void SetUp() override { enter(folder()); }
  // Names of data files start where the process is.
  static void enter(const std::string& where) {
    ASSERT_EQ(::chdir(where.c_str()), 0);
  }
  std::string name() const { return GetParam()["name"].get<std::string>(); }
  // What its name ends in.
  std::string format() const { return name().substr(name().rfind('.') + 1); }
  ImageFile image_in(const std::string& where) const {
    const bool is_encrypted = absl::StartsWith(name(), "encrypted-") ||
                              absl::StartsWith(name(), "luks");
    return {absl::StrCat(where, "/", name()), format(),
            is_encrypted ? "opensesame" : ""};
  }
  // Where to run spindle-img so that it prints what is in the manifest.
  Json run_for_json(const std::string& command, int* exit_code) const {
    const auto result = run_tool_apart({workspace_path("tools/spindle-img"),
                                        command, "--output=json", "-f",
                                        format(), image_in(folder()).path});
    EXPECT_TRUE(result.ok());
    if (!result.ok()) return {};
    *exit_code = result->exit_code;
    return Json::parse(result->output, nullptr, /*allow_exceptions=*/false);
  }
  // Null if it must not be opened.
  std::unique_ptr<BlockDevice> open(const ImageFile& image, bool read_only) {
    auto device = open_ours(image, read_only);
    if (GetParam()["opens"] == false) {
      EXPECT_TRUE(absl::IsUnimplemented(device.status())) << device.status();
      return nullptr;
    }
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? *std::move(device) : nullptr;
  }
};

TEST_P(Golden, ContentIsWhatQemuRead) {
  const auto device = open(image_in(folder()), /*read_only=*/true);
  if (device == nullptr) return;
  const auto content = read_everything(*device);
  ASSERT_TRUE(content.ok()) << content.status();
  EXPECT_EQ(device->close(), absl::OkStatus());
  const std::string flat = temporary_path("content");
  ASSERT_EQ(write_file(flat, *content), absl::OkStatus());
  const auto sum = run_tool_ok({"sha256sum", flat});
  ASSERT_TRUE(sum.ok());
  EXPECT_EQ(sum->substr(0, 64), GetParam()["sha256"].get<std::string>());
  ::unlink(flat.c_str());
}

TEST_P(Golden, InfoSaysWhatQemuSaid) {
  int exit_code = -1;
  Json info = run_for_json("info", &exit_code);
  EXPECT_EQ(exit_code, GetParam()["opens"] == false ? 1 : 0);
  if (GetParam()["opens"] == false) return;
  for (const char* key : {"actual-size", "filename", "full-backing-filename"})
    info.erase(key);
  EXPECT_EQ(info.dump(1), GetParam()["info"].dump(1));
}

TEST_P(Golden, CheckFindsWhatQemuFound) {
  if (GetParam()["opens"] == false) return;
  if (!has_check(GetParam()) && !is_qcow(GetParam())) return;
  int exit_code = -1;
  Json check = run_for_json("check", &exit_code);
  EXPECT_EQ(exit_code, check_exit_code(GetParam())) << check;
  if (!has_check(GetParam())) return;
  check.erase("filename");
  EXPECT_EQ(check.dump(1), GetParam()["check"].dump(1));
}

TEST_P(Golden, QemuReadsWhatWeWriteIntoIt) {
  if (GetParam()["opens"] == false || !is_sound(GetParam())) return;
  const std::string copy = temporary_path("copy");
  shell("cp -r --sparse=always \"$1\" \"$2\"", {folder(), copy});
  enter(copy);
  const ImageFile image = image_in(copy);
  const auto device = open(image, /*read_only=*/false);
  if (device == nullptr) return;
  auto expected = read_everything(*device);
  ASSERT_TRUE(expected.ok()) << expected.status();
  uint8_t pattern = 200;
  for (const ByteRange range :
       {ByteRange{1000, 3000}, ByteRange{66 << 10, 1 << 10},
        ByteRange{300 << 10, 140 << 10}, ByteRange{511 << 10, 2 << 10}}) {
    if (range.end() > expected->size()) break;
    Bytes bytes(range.length, ++pattern);
    ASSERT_EQ(
        device->pwrite(IoVector(bytes.data(), bytes.size()), range.offset),
        absl::OkStatus());
    std::copy(bytes.begin(), bytes.end(),
              expected->begin() + static_cast<ptrdiff_t>(range.offset));
  }
  ASSERT_EQ(device->close(), absl::OkStatus());
  const auto content = qemu_content(image);
  ASSERT_TRUE(content.ok()) << content.status();
  EXPECT_TRUE(*content == *expected);
  if (has_check(GetParam())) EXPECT_EQ(qemu_check(image), absl::OkStatus());
  enter(folder());
  shell("rm -r \"$1\"", {copy});
}

std::string test_name(const ::testing::TestParamInfo<Json>& info) {
  std::string name = info.param["name"].get<std::string>();
  name.resize(name.rfind('.'));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Images, Golden, ::testing::ValuesIn(manifest()),
                         test_name);

TEST(GoldenSet, IsComplete) { EXPECT_GE(manifest().size(), 66u); }

TEST(GoldenSet, IsSmall) {
  shell(
      "for file in \"$1\"/*.gz; do"
      " test \"$(stat -Lc %s \"$file\")\" -lt 81920; done",
      {workspace_path("tests/golden/images")});
}

}  // namespace
}  // namespace spindle::testing

#include "tests/differential/programs.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"

namespace spindle::testing {
namespace {

std::string our_program() {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
}

}  // namespace

ScratchImage::ScratchImage(const std::string& format)
    : image_{temporary_path("image"), format} {}

ScratchImage::~ScratchImage() { ::unlink(image_.path.c_str()); }

std::vector<uint8_t> ScratchImage::content() const {
  auto bytes = read_file(path());
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::vector<uint8_t>();
}

void ScratchImage::set_content(const std::vector<uint8_t>& content) const {
  EXPECT_TRUE(write_file(path(), content).ok());
}

SeparateResult run_program(Whose whose, Arguments arguments) {
  arguments.insert(arguments.begin(),
                   whose == Whose::kOurs ? our_program() : "qemu-img");
  auto result = run_tool_apart(arguments);
  EXPECT_TRUE(result.ok()) << result.status();
  if (!result.ok()) return {};
  result->errors =
      absl::StrReplaceAll(result->errors, {{"spindle-img", "qemu-img"}});
  return *std::move(result);
}

void expect_same_output(const Arguments& arguments) {
  SCOPED_TRACE(absl::StrJoin(arguments, " "));
  const SeparateResult ours = run_program(Whose::kOurs, arguments);
  const SeparateResult theirs = run_program(Whose::kQemus, arguments);
  EXPECT_EQ(ours.output, theirs.output);
  EXPECT_EQ(ours.errors, theirs.errors);
  EXPECT_EQ(ours.exit_code, theirs.exit_code);
}

}  // namespace spindle::testing

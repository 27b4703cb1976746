#include "tests/support/failing_accesses.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/errors.h"
#include "tests/support/memory_driver.h"

namespace spindle::testing {
namespace {

TEST(FailingAccesses, EachFailsInEachWay) {
  std::set<std::string> seen;
  const int failures = for_each_failing_access([&](const FailAt& fail) {
    const auto file =
        std::make_shared<ObservingDriver>(std::make_shared<MemoryDriver>());
    ByteChannel channel(file);
    fail.arm(file.get());
    std::string results = absl::StrCat(fail.nth, ":");
    for (uint64_t i = 0; i < 3; ++i) {
      const uint8_t byte = 1;
      const absl::Status done =
          channel.write(Purpose::kWriteAio, &byte, 1, i * 512);
      absl::StrAppend(&results, " ", errno_of(done).value_or(0));
    }
    seen.insert(results);
    return file->failure_count() != 0;
  });
  EXPECT_EQ(failures, 12);
  std::set<std::string> expected = {"4: 0 0 0"};
  for (const int error : {EIO, ENOSPC}) {
    expected.insert(absl::StrCat("1: ", error, " 0 0"));
    expected.insert(absl::StrCat("2: 0 ", error, " 0"));
    expected.insert(absl::StrCat("3: 0 0 ", error));
    expected.insert(absl::StrCat("1: ", error, " ", error, " ", error));
    expected.insert(absl::StrCat("2: 0 ", error, " ", error));
  }
  EXPECT_EQ(seen, expected);
}

}  // namespace
}  // namespace spindle::testing

#include "formats/cluster/corruption.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

class Log {
 public:
  LogSink sink() {
    return [this](LogSeverity severity, absl::string_view line) {
      EXPECT_EQ(severity, LogSeverity::kError);
      lines.emplace_back(line);
    };
  }
  std::vector<std::string> lines;
};

TEST(Corruption, RefusesWritesAndSaysWhy) {
  Log log;
  int marks = 0;
  const auto mark = [&] {
    ++marks;
    return absl::OkStatus();
  };
  Corruption corruption("qcow9", mark, log.sink());
  EXPECT_TRUE(corruption.writes_allowed().ok());
  EXPECT_FALSE(corruption.is_set());

  EXPECT_EQ(corruption.report("entry 3 is bad"),
            absl::DataLossError("entry 3 is bad"));
  EXPECT_EQ(corruption.report("entry 4 is bad"),
            absl::DataLossError("entry 4 is bad"));
  EXPECT_TRUE(corruption.is_set());
  EXPECT_TRUE(absl::IsDataLoss(corruption.writes_allowed()));
  EXPECT_TRUE(absl::StrContains(corruption.writes_allowed().message(),
                                "entry 3 is bad"));
  EXPECT_EQ(marks, 1);
  ASSERT_EQ(log.lines.size(), 1u);
  EXPECT_TRUE(absl::StartsWith(log.lines[0], "qcow9: entry 3 is bad"));
}

TEST(Corruption, NeedsNeitherAMarkNorALog) {
  Corruption corruption("qcow9", nullptr, nullptr);
  EXPECT_TRUE(absl::IsDataLoss(corruption.report("bad")));
  EXPECT_FALSE(corruption.writes_allowed().ok());
}

TEST(Corruption, AMarkThatFailsIsLogged) {
  Log log;
  Corruption corruption(
      "qcow9", [] { return absl::UnknownError("no"); }, log.sink());
  EXPECT_EQ(corruption.report("bad"), absl::DataLossError("bad"));
  EXPECT_FALSE(corruption.writes_allowed().ok());
  ASSERT_EQ(log.lines.size(), 2u);
  EXPECT_TRUE(absl::StrContains(log.lines[1], "no"));
}

}  // namespace
}  // namespace spindle

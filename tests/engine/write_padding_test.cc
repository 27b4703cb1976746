#include "engine/write_padding.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace spindle {
namespace {

using Steps = std::vector<std::string>;

// Notes what it is told, and fails when told so.
class NotingObserver final : public AccessObserver {
 public:
  absl::Status before_access(const Access& access) override {
    EXPECT_EQ(access.kind, AccessKind::kRead);
    steps.push_back(
        absl::StrCat(purpose_name(access.purpose), " ", access.range.offset));
    return steps.back() == failing ? absl::DataLossError(failing)
                                   : absl::OkStatus();
  }
  Steps steps;
  std::string failing;
};

struct Outcome {
  Steps steps;
  absl::Status status;
};

Outcome run(const UnalignedWrite& write, const std::string& failing = "") {
  NotingObserver observer;
  observer.failing = failing;
  uint8_t head = 0;
  uint8_t tail = 0;
  absl::Status status = read_padding(
      write, &observer, &head, &tail, [&](uint64_t offset, uint8_t* to) {
        observer.steps.push_back(absl::StrCat(
            "read ", offset, to == &head ? " as head" : " as tail"));
        return observer.steps.back() == failing ? absl::DataLossError(failing)
                                                : absl::OkStatus();
      });
  return {observer.steps, status};
}

TEST(WritePadding, ReadsWhatIsCoveredInPart) {
  const auto steps = [](uint64_t begin, uint64_t end) {
    return run({.begin = begin, .end = end, .unit_bytes = 4096}).steps;
  };
  EXPECT_EQ(steps(4096, 8192), Steps());
  EXPECT_EQ(steps(4097, 8192),
            (Steps{"pwritev_rmw_head 4096", "read 4096 as head",
                   "pwritev_rmw_after_head 4096"}));
  EXPECT_EQ(steps(4096, 8191),
            (Steps{"pwritev_rmw_tail 4096", "read 4096 as head",
                   "pwritev_rmw_after_tail 4096"}));
  EXPECT_EQ(steps(5000, 6000),
            (Steps{"pwritev_rmw_head 4096", "pwritev_rmw_tail 4096",
                   "read 4096 as head", "pwritev_rmw_after_head 4096",
                   "pwritev_rmw_after_tail 4096"}));
  EXPECT_EQ(steps(5000, 9000),
            (Steps{"pwritev_rmw_head 4096", "read 4096 as head",
                   "pwritev_rmw_after_head 4096", "pwritev_rmw_tail 8192",
                   "read 8192 as tail", "pwritev_rmw_after_tail 8192"}));
  EXPECT_EQ(steps(4096, 9000),
            (Steps{"pwritev_rmw_tail 8192", "read 8192 as tail",
                   "pwritev_rmw_after_tail 8192"}));
}

// QEMU writes to files by the byte: nothing is read there.
TEST(WritePadding, SectorsAreNotAnnounced) {
  EXPECT_EQ(run({.begin = 100, .end = 1000, .unit_bytes = 512}).steps,
            (Steps{"read 0 as head", "read 512 as tail"}));
}

TEST(WritePadding, StopsAtTheFirstError) {
  const UnalignedWrite write{.begin = 5000, .end = 9000, .unit_bytes = 4096};
  const Steps all = run(write).steps;
  ASSERT_EQ(all.size(), 6u);
  for (size_t i = 0; i < all.size(); ++i) {
    const Outcome outcome = run(write, all[i]);
    EXPECT_EQ(outcome.status, absl::DataLossError(all[i]));
    EXPECT_EQ(outcome.steps,
              Steps(all.begin(), all.begin() + static_cast<ptrdiff_t>(i) + 1));
  }
}

}  // namespace
}  // namespace spindle

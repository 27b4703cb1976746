#include "tests/formats/cluster/error_injection.h"

#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "gtest/gtest.h"

namespace spindle::testing {
namespace {

using Repeat = ObservingDriver::Repeat;

absl::Status run_step(BlockDriver& driver, const Step& step) {
  switch (step.kind) {
    case Step::Kind::kWrite:
      return write_fill(driver, step.range, step.value);
    case Step::Kind::kCompressed: {
      std::string bytes(step.range.length, static_cast<char>(step.value));
      return driver.write_compressed(
          IoVector(bytes.data(), bytes.size()),
          Sector::from_byte_offset(step.range.offset));
    }
    case Step::Kind::kDiscard:
      return driver.discard(step.range);
    case Step::Kind::kZero:
      return driver.write_zeroes(step.range, {});
    case Step::Kind::kZeroAndUnmap:
      return driver.write_zeroes(step.range, {.may_unmap = true});
    case Step::Kind::kFlush:
      return driver.flush();
  }
  return absl::InternalError("no such step");
}

// What each sector may hold.
class Model {
 public:
  Model(uint64_t size_bytes, uint8_t initial)
      : now_(size_bytes / kSectorSizeBytes, {initial}), after_crash_(now_) {}

  void note(const Step& step, bool succeeded) {
    if (step.kind == Step::Kind::kFlush) {
      if (succeeded) after_crash_ = now_;
      return;
    }
    for (uint64_t s = step.range.offset / kSectorSizeBytes;
         s < step.range.end() / kSectorSizeBytes; ++s) {
      if (succeeded) now_[s].clear();
      now_[s].insert(step.value);
      after_crash_[s].insert(step.value);
    }
  }

  // For the image as its driver shows it, or as it was closed.
  std::string mismatch(BlockDriver& driver) const {
    return mismatch(driver, now_);
  }
  // For the image as it stands in the file while the driver is still open.
  std::string mismatch_after_crash(BlockDriver& driver) const {
    return mismatch(driver, after_crash_);
  }

 private:
  using Values = std::set<uint8_t>;

  static std::string mismatch(BlockDriver& driver,
                              const std::vector<Values>& allowed) {
    const uint64_t bytes = allowed.size() * kSectorSizeBytes;
    const auto content = read_bytes(driver, {0, bytes});
    if (!content.ok()) return content.status().ToString();
    for (size_t s = 0; s < allowed.size(); ++s) {
      const char* const begin = content->data() + s * kSectorSizeBytes;
      // Each byte is the one before it.
      const bool uniform =
          std::memcmp(begin, begin + 1, kSectorSizeBytes - 1) == 0;
      const auto value = static_cast<uint8_t>(*begin);
      if (!uniform || !allowed[s].contains(value)) {
        return absl::StrCat("sector ", s, " holds ", value,
                            uniform ? "" : " and more");
      }
    }
    return "";
  }

  std::vector<Values> now_;
  std::vector<Values> after_crash_;
};

struct Failure {
  int error_number;
  Repeat repeat;
};

std::string describe(const FailureScenario& scenario, int k,
                     const Failure& failure) {
  return absl::StrCat(
      scenario.name, ", access ", k, ", errno ", failure.error_number,
      failure.repeat == Repeat::kOnce ? " once" : " from then on");
}

// A failed access that need not be reported: punching is advice, and a full
// file system may turn out to have room among what was freed.  So may it for a
// flush round that an allocation runs to free it.
bool may_be_hidden(const FailureScenario& scenario, Purpose purpose,
                   const Failure& failure) {
  if (purpose == Purpose::kClusterFree) return true;
  if (failure.error_number != ENOSPC) return false;
  return purpose == Purpose::kClusterAlloc ||
         purpose == Purpose::kWriteCompressed ||
         (scenario.allocations_run_rounds &&
          (purpose == Purpose::kRefblockUpdate ||
           purpose == Purpose::kL2Update || purpose == Purpose::kFlushToDisk));
}

class Injection {
 public:
  explicit Injection(const FailureScenario& scenario) : scenario_(scenario) {
    MemoryImage image(scenario.options);
    for (const Step& step : scenario.setup) {
      EXPECT_EQ(run_step(image.driver(), step), absl::OkStatus());
    }
    EXPECT_EQ(image.close(), absl::OkStatus());
    prepared_ = image.memory().content();
  }

  // Runs the scenario with the k-th access failing.  False if it has fewer.
  bool run(int k, const Failure& failure, bool judge);
  // The purposes of the accesses that failed first.
  const std::set<Purpose>& failed_purposes() const { return failed_; }

 private:
  void check_after(MemoryImage* image, const Model& model, bool judge);

  const FailureScenario& scenario_;
  std::string prepared_;
  std::set<Purpose> failed_;
};

bool Injection::run(int k, const Failure& failure, bool judge) {
  MemoryImageOptions options = scenario_.options;
  options.bytes = prepared_;
  MemoryImage image(options);
  Model model(options.size_bytes, options.backing.empty() ? 0 : 'b');
  for (const Step& step : scenario_.setup) model.note(step, true);
  model.note(flush(), true);

  int accesses = 0;
  std::optional<Purpose> failed_purpose;
  image.file().set_hook([&](const Access& access) {
    if (++accesses == k) failed_purpose = access.purpose;
    return absl::OkStatus();
  });
  image.file().fail_at({}, failure.error_number, k, failure.repeat);
  bool reported = false;
  for (const Step& step : scenario_.steps) {
    const absl::Status status = run_step(image.driver(), step);
    model.note(step, status.ok());
    if (status.ok()) continue;
    reported = true;
    // Only a header of unknown content may be something worse.
    const bool poisoned = absl::IsDataLoss(status) &&
                          failure.repeat == Repeat::kFromThenOn &&
                          failed_purpose.has_value();
    EXPECT_TRUE(errno_of(status) == failure.error_number || poisoned) << status;
  }
  image.file().set_hook(nullptr);
  if (!failed_purpose.has_value()) return false;
  failed_.insert(*failed_purpose);
  EXPECT_TRUE(reported || may_be_hidden(scenario_, *failed_purpose, failure))
      << "nobody heard of the failed " << purpose_name(*failed_purpose);
  check_after(&image, model, judge);
  return true;
}

void Injection::check_after(MemoryImage* image, const Model& model,
                            bool judge) {
  // As if the process had ended here.
  const std::string left = image->memory().content();
  const auto reopened = image->open_copy(left);
  ASSERT_TRUE(reopened.ok()) << reopened.status();
  EXPECT_EQ(model.mismatch_after_crash(**reopened), "");
  if (judge) {
    EXPECT_EQ(image->check(left, Leaks::kAllowed), absl::OkStatus());
  }
  // Things are well again.
  image->file().clear_failures();
  EXPECT_EQ(model.mismatch(image->driver()), "");
  EXPECT_EQ(image->close(), absl::OkStatus());
  if (judge) {
    EXPECT_EQ(image->check(image->memory().content(), Leaks::kAllowed),
              absl::OkStatus());
  }
  ASSERT_EQ(image->open(/*read_only=*/true), absl::OkStatus());
  EXPECT_EQ(model.mismatch(image->driver()), "");
}

}  // namespace

void fail_every_access(const FailureScenario& scenario) {
  // A process for each judgement takes its time: every seventh.  Where there is
  // much to read, one kind of error comes everywhere, the others here and
  // there.
  constexpr int kJudgeEvery = 7;
  const int stride = scenario.options.size_bytes > (1 << 20) ? 4 : 1;
  Injection injection(scenario);
  int runs = 0;
  for (const Failure failure :
       {Failure{EIO, Repeat::kOnce}, Failure{ENOSPC, Repeat::kOnce},
        Failure{EIO, Repeat::kFromThenOn},
        Failure{ENOSPC, Repeat::kFromThenOn}}) {
    const bool everywhere =
        failure.error_number == EIO && failure.repeat == Repeat::kOnce;
    for (int k = 1;; k += everywhere ? 1 : stride) {
      SCOPED_TRACE(describe(scenario, k, failure));
      if (!injection.run(k, failure, ++runs % kJudgeEvery == 0)) break;
      if (::testing::Test::HasFailure()) return;
    }
  }
  for (Purpose purpose : scenario.purposes) {
    EXPECT_TRUE(injection.failed_purposes().contains(purpose))
        << "no failed " << purpose_name(purpose);
  }
}

}  // namespace spindle::testing

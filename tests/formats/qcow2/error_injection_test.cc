// Every access to the image's file fails once, or from then on: the caller
// learns of it, what was readable stays readable, and the file is never more
// damaged than by leaked clusters.
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "formats/qcow2/qcow2_driver.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"

namespace spindle::testing {
namespace {

using Repeat = ObservingDriver::Repeat;

struct Step {
  enum class Kind {
    kWrite,
    kCompressed,
    kDiscard,
    kZero,
    kZeroAndUnmap,
    kFlush
  };
  Kind kind;
  ByteRange range = {};
  uint8_t value = 0;
};

Step write(uint64_t offset, uint64_t length, uint8_t value) {
  return {Step::Kind::kWrite, {offset, length}, value};
}
Step compressed(uint64_t offset, uint64_t length, uint8_t value) {
  return {Step::Kind::kCompressed, {offset, length}, value};
}
Step discard(uint64_t offset, uint64_t length) {
  return {Step::Kind::kDiscard, {offset, length}};
}
Step zero(uint64_t offset, uint64_t length) {
  return {Step::Kind::kZero, {offset, length}};
}
Step zero_and_unmap(uint64_t offset, uint64_t length) {
  return {Step::Kind::kZeroAndUnmap, {offset, length}};
}
Step flush() { return {Step::Kind::kFlush}; }

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

struct Scenario {
  std::string name;
  MemoryImageOptions options;
  std::vector<Step> setup;  // before anything fails, flushed
  std::vector<Step> steps;
  // What it is about: some of the accesses that fail are for these.
  std::set<Purpose> purposes = {Purpose::kClusterAlloc, Purpose::kL2Update,
                                Purpose::kRefblockUpdate,
                                Purpose::kFlushToDisk};
  // The file is nearly as long as its data, so that freed clusters are wanted
  // before a flush.
  bool allocations_run_rounds = false;
};

constexpr uint64_t kCluster = 4096;

MemoryImageOptions options_of(uint64_t cluster_bytes, uint64_t size_bytes) {
  MemoryImageOptions options;
  options.size_bytes = size_bytes;
  options.create["cluster_size"] = absl::StrCat(cluster_bytes);
  // Never crowded: a round that nobody asked for would report to nobody.
  options.open["l2-cache-size"] = "4M";
  options.open["refcount-cache-size"] = "4M";
  return options;
}

MemoryImageOptions with_backing() {
  MemoryImageOptions options = options_of(kCluster, 32 * kCluster);
  options.backing = std::string(options.size_bytes, 'b');
  return options;
}

// Refcounts of 64 bits in clusters of 512 bytes: a block counts 32 KiB of the
// file, and a table of one cluster 2 MiB.
MemoryImageOptions tiny_clusters(uint64_t size_bytes) {
  MemoryImageOptions options = options_of(512, size_bytes);
  options.create["refcount_bits"] = "64";
  return options;
}

std::vector<Scenario> scenarios() {
  const MemoryImageOptions plain = options_of(kCluster, 32 * kCluster);
  std::vector<Scenario> list;
  list.push_back({"FirstWrite",
                  plain,
                  {},
                  {write(0, kCluster, 1), write(5 * kCluster + 512, 1024, 2),
                   flush(), write(5 * kCluster + 2048, 512, 3),
                   write(9 * kCluster + 512, 3 * kCluster, 4), flush()}});
  list.push_back(
      {"FirstWriteOverBacking",
       with_backing(),
       {},
       {write(512, 512, 1), write(5 * kCluster - 512, 2 * kCluster, 2), flush(),
        write(1024, 512, 3), discard(5 * kCluster, kCluster),
        write(5 * kCluster + 512, 512, 4), flush()}});
  list.push_back(
      {"Overwrite",
       plain,
       {write(0, 8 * kCluster, 1)},
       {write(512, 3 * kCluster, 2), flush(),
        write(6 * kCluster, 4 * kCluster, 3), write(0, 512, 4), flush()}});
  list.push_back(
      {"DiscardAndRewrite",
       plain,
       {write(0, 8 * kCluster, 1)},
       {discard(kCluster, 3 * kCluster), write(10 * kCluster, kCluster, 2),
        flush(), write(2 * kCluster + 512, 512, 3),
        write(11 * kCluster, kCluster, 4), discard(0, kCluster), flush(),
        write(0, 4 * kCluster, 5), flush()}});
  list.push_back(
      {"WriteZeroes",
       plain,
       {write(0, 8 * kCluster, 1)},
       {zero(0, 2 * kCluster), zero_and_unmap(3 * kCluster, 2 * kCluster),
        write(512, 512, 2), flush(), zero(12 * kCluster, kCluster),
        write(12 * kCluster, 512, 3), write(3 * kCluster, 1024, 4), flush()}});
  MemoryImageOptions encrypted = plain;
  encrypted.encryption = "luks";
  list.push_back(
      {"Encrypted",
       encrypted,
       {write(0, 3 * kCluster, 1)},
       {write(5 * kCluster + 512, 1024, 2), flush(),
        write(5 * kCluster + 2048, 512, 3), discard(0, kCluster),
        write(512, 3 * kCluster, 4), zero(9 * kCluster, kCluster), flush(),
        write(9 * kCluster + 512, 512, 5), write(0, 1024, 6), flush()}});
  MemoryImageOptions old_encrypted = with_backing();
  old_encrypted.encryption = "aes";
  list.push_back(
      {"EncryptedOverBacking",
       old_encrypted,
       {},
       {write(512, 512, 1), write(5 * kCluster - 512, 2 * kCluster, 2), flush(),
        write(1024, 512, 3), discard(5 * kCluster, kCluster),
        write(5 * kCluster + 512, 512, 4), flush()}});
  MemoryImageOptions kept = plain;
  kept.open["discard-no-unref"] = "on";
  list.push_back(
      {"DiscardNoUnref",
       kept,
       {write(0, 8 * kCluster, 1), compressed(8 * kCluster, kCluster, 2)},
       {discard(kCluster, 3 * kCluster), zero_and_unmap(6 * kCluster, kCluster),
        discard(8 * kCluster, kCluster), write(2 * kCluster + 512, 512, 3),
        flush(), write(kCluster, kCluster, 4), write(6 * kCluster, 512, 5),
        discard(0, 2 * kCluster), flush(), write(512, 512, 6), flush()},
       {Purpose::kClusterAlloc, Purpose::kL2Update, Purpose::kClusterFree,
        Purpose::kFlushToDisk}});
  list.push_back(
      {"Compressed",
       plain,
       {compressed(0, 4 * kCluster, 1), write(4 * kCluster, 512, 2)},
       {compressed(6 * kCluster, 2 * kCluster, 3), flush(),
        compressed(0, kCluster, 4), discard(kCluster, kCluster),
        compressed(4 * kCluster, kCluster, 5), flush(),
        write(2 * kCluster + 512, 512, 6), zero(6 * kCluster, kCluster),
        compressed(8 * kCluster, kCluster, 7), flush()},
       {Purpose::kWriteCompressed, Purpose::kL2Update, Purpose::kRefblockUpdate,
        Purpose::kFlushToDisk}});
  // Subclusters are sectors here.
  constexpr uint64_t kLarge = 16384;
  MemoryImageOptions subclusters = options_of(kLarge, 8 * kLarge);
  subclusters.create["extended_l2"] = "on";
  const std::vector<Step> mixed = {write(512, 1024, 1),
                                   write(kLarge + 4096, kLarge, 2),
                                   flush(),
                                   write(4096, 512, 3),
                                   write(0, 8192, 4),
                                   zero(1024, 2048),
                                   zero_and_unmap(3 * kLarge, kLarge),
                                   flush(),
                                   write(1024, 512, 5),
                                   discard(kLarge, kLarge),
                                   write(kLarge + 512, 512, 6),
                                   compressed(4 * kLarge, kLarge, 7),
                                   flush(),
                                   write(4 * kLarge + 1024, 512, 8),
                                   write(3 * kLarge, 512, 9),
                                   flush()};
  list.push_back({"Subclusters", subclusters, {}, mixed});
  subclusters.backing = std::string(subclusters.size_bytes, 'b');
  list.push_back({"SubclustersOverBacking",
                  subclusters,
                  {write(3 * kLarge + 512, 2048, 1)},
                  mixed});
  list.back().allocations_run_rounds = true;
  // Refcount blocks are added beneath it.
  Scenario packed{"CompressedGrowth", tiny_clusters(256 << 10), {}, {}};
  packed.purposes = {Purpose::kWriteCompressed, Purpose::kRefblockAllocHookup};
  for (uint64_t i = 0; i < 4; ++i) {
    packed.steps.push_back(write(i * (40 << 10), 16 << 10, 1 + i));
    packed.steps.push_back(
        compressed(i * (40 << 10) + (16 << 10), 12 << 10, 10 + i));
    packed.steps.push_back(flush());
  }
  list.push_back(std::move(packed));
  Scenario growth{
      "GrowthOfTheRefcountTable", tiny_clusters(2100 << 10), {}, {}};
  growth.purposes = {Purpose::kReftableGrow, Purpose::kHeaderUpdate};
  // 2 MiB of the file, less what the tables take, and a bit.
  growth.setup.push_back(write(0, 1900 << 10, 1));
  for (uint64_t i = 0; i < 4; ++i) {
    const uint64_t offset = (1900 << 10) + i * (24 << 10);
    growth.steps.push_back(write(offset, 24 << 10, 2 + i));
    if (i % 2 == 1) growth.steps.push_back(flush());
  }
  growth.steps.push_back(discard(0, 64 << 10));
  growth.steps.push_back(flush());
  growth.steps.push_back(write(1024, 20 << 10, 9));
  growth.steps.push_back(flush());
  list.push_back(std::move(growth));
  Scenario blocks{"GrowthOfRefcountBlocks", tiny_clusters(256 << 10), {}, {}};
  blocks.purposes = {Purpose::kRefblockAllocHookup, Purpose::kL1Update};
  for (uint64_t i = 0; i < 6; ++i) {
    blocks.steps.push_back(write(i * (40 << 10), 17 << 10, 1 + i));
    blocks.steps.push_back(flush());
  }
  list.push_back(std::move(blocks));
  return list;
}

struct Failure {
  int error_number;
  Repeat repeat;
};

std::string describe(const Scenario& scenario, int k, const Failure& failure) {
  return absl::StrCat(
      scenario.name, ", access ", k, ", errno ", failure.error_number,
      failure.repeat == Repeat::kOnce ? " once" : " from then on");
}

// A failed access that need not be reported: punching is advice, and a full
// file system may turn out to have room among what was freed.  So may it for a
// flush round that an allocation runs to free it.
bool may_be_hidden(const Scenario& scenario, Purpose purpose,
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
  explicit Injection(const Scenario& scenario) : scenario_(scenario) {
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

  const Scenario& scenario_;
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
    EXPECT_EQ(check_image_bytes(left, Leaks::kAllowed), absl::OkStatus());
  }
  // Things are well again.
  image->file().clear_failures();
  EXPECT_EQ(model.mismatch(image->driver()), "");
  EXPECT_EQ(image->close(), absl::OkStatus());
  if (judge) {
    EXPECT_EQ(check_image_bytes(image->memory().content(), Leaks::kAllowed),
              absl::OkStatus());
  }
  ASSERT_EQ(image->open(/*read_only=*/true), absl::OkStatus());
  EXPECT_EQ(model.mismatch(image->driver()), "");
}

class ErrorInjection : public ::testing::TestWithParam<Scenario> {};
INSTANTIATE_TEST_SUITE_P(Scenarios, ErrorInjection,
                         ::testing::ValuesIn(scenarios()),
                         [](const auto& info) { return info.param.name; });

TEST_P(ErrorInjection, EveryAccessMayFail) {
  // A process for each judgement takes its time: every seventh.  Where there is
  // much to read, one kind of error comes everywhere, the others here and
  // there.
  constexpr int kJudgeEvery = 7;
  const int stride = GetParam().options.size_bytes > (1 << 20) ? 4 : 1;
  Injection injection(GetParam());
  int runs = 0;
  for (const Failure failure :
       {Failure{EIO, Repeat::kOnce}, Failure{ENOSPC, Repeat::kOnce},
        Failure{EIO, Repeat::kFromThenOn},
        Failure{ENOSPC, Repeat::kFromThenOn}}) {
    const bool everywhere =
        failure.error_number == EIO && failure.repeat == Repeat::kOnce;
    for (int k = 1;; k += everywhere ? 1 : stride) {
      SCOPED_TRACE(describe(GetParam(), k, failure));
      if (!injection.run(k, failure, ++runs % kJudgeEvery == 0)) break;
      if (HasFailure()) return;
    }
  }
  for (Purpose purpose : GetParam().purposes) {
    EXPECT_TRUE(injection.failed_purposes().contains(purpose))
        << "no failed " << purpose_name(purpose);
  }
}

// An image that cannot be read is not opened, and left as it is.
TEST(ErrorInjectionAtOpen, OpenReportsItAndWritesNothing) {
  MemoryImage image(tiny_clusters(64 << 10));
  ASSERT_EQ(image.write({0, 40 << 10}, 1), absl::OkStatus());
  ASSERT_EQ(image.close(), absl::OkStatus());
  const std::string before = image.memory().content();
  bool failed = true;
  int k = 0;
  while (failed) {
    auto copy = std::make_shared<MemoryDriver>();
    copy->set_content(0, before);
    auto observed = std::make_shared<ObservingDriver>(copy);
    observed->fail_at({}, EIO, ++k);
    const auto driver = qcow2::open_qcow2(observed, {}, {});
    failed = observed->failure_count() != 0;
    EXPECT_EQ(driver.ok(), !failed);
    EXPECT_EQ(errno_of(driver.status()).value_or(0), failed ? EIO : 0);
    EXPECT_TRUE(copy->content() == before);
  }
  EXPECT_GT(k, 3);
}

}  // namespace
}  // namespace spindle::testing

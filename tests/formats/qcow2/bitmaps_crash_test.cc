// Persistent bitmaps when accesses fail and when the power goes: a bitmap that
// is not in use covers whatever is on the disk, and none is lost.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/dirty_bitmap.h"
#include "engine/format.h"
#include "formats/qcow2/qcow2_driver.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/failing_accesses.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::CutDisk;
using testing::FailAt;
using testing::for_each_failing_access;
using testing::LogEntry;
using testing::LoggingDriver;
using testing::MemoryDriver;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::ObservingDriver;
using testing::read_bytes;
using testing::write_fill;

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kDiskBytes = 64 * kCluster;

ByteRange granule(uint64_t index) { return {index * kCluster, kCluster}; }

// Before there are bitmaps the last granules are written, so that what comes
// later overwrites them where they are.
constexpr ByteRange kBefore{40 * kCluster, 24 * kCluster};
constexpr uint8_t kValueBefore = 7;

// The bitmap "all" follows everything since then, "old" was disabled when
// granule 1 alone was dirty.
std::string first_image() {
  MemoryImageOptions options;
  options.size_bytes = kDiskBytes;
  options.create["cluster_size"] = absl::StrCat(kCluster);
  MemoryImage image(options);
  BlockDriver& driver = image.driver();
  EXPECT_TRUE(image.write(kBefore, kValueBefore).ok());
  EXPECT_TRUE(driver.add_bitmap({"all", kCluster, true}).ok());
  EXPECT_TRUE(driver.add_bitmap({"old", kCluster, true}).ok());
  EXPECT_TRUE(image.write(granule(1), 1).ok());
  EXPECT_TRUE(driver.enable_bitmap("old", false).ok());
  EXPECT_TRUE(image.write(granule(2), 1).ok());
  EXPECT_TRUE(image.close().ok());
  return image.memory().content();
}

// A file that can be given up and taken again.
class LockedMemory final : public MemoryDriver {
 public:
  Capabilities capabilities() const override {
    Capabilities list = MemoryDriver::capabilities();
    list.add(Capability::kReopen);
    list.add(Capability::kInactivate);
    return list;
  }
  absl::Status reopen(const ReopenOptions&) override {
    return absl::OkStatus();
  }
  absl::Status inactivate() override { return absl::OkStatus(); }
  absl::Status activate() override { return absl::OkStatus(); }
};

absl::StatusOr<std::shared_ptr<BlockDriver>> open_over(
    std::shared_ptr<BlockDriver> file, bool read_only = false) {
  OpenOptions options;
  options.read_only = read_only;
  return open_qcow2(std::move(file), options, {});
}

// The bitmaps of a file, and what is wrong with them.
class Judgement {
 public:
  explicit Judgement(const std::string& bytes) {
    auto memory = std::make_shared<MemoryDriver>();
    memory->set_content(0, bytes);
    auto opened = open_over(memory, /*read_only=*/true);
    if (!opened.ok()) {
      wrong_ = opened.status().ToString();
      return;
    }
    image_ = *std::move(opened);
    const auto content = read_bytes(*image_, {0, kDiskBytes});
    const auto list = image_->list_bitmaps();
    if (!content.ok() || !list.ok()) {
      wrong_ = absl::StrCat(content.status().ToString(), ", ",
                            list.status().ToString());
      return;
    }
    content_ = *content;
    list_ = *list;
    judge_all();
  }

  const std::string& wrong() const { return wrong_; }
  // Null if there is none.
  const DirtyBitmapInfo* find(absl::string_view name) const {
    for (const DirtyBitmapInfo& info : list_) {
      if (info.name == name) return &info;
    }
    return nullptr;
  }
  // The granules that are dirty in a consistent one.
  std::string dirty(absl::string_view name) const {
    const auto bits = image_->find_bitmap(name);
    if (!bits.ok()) return bits.status().ToString();
    std::string text;
    for (uint64_t i = 0; i < kDiskBytes / kCluster; ++i) {
      if ((*bits)->is_dirty(i * kCluster)) absl::StrAppend(&text, i, " ");
    }
    return text;
  }

 private:
  void judge_all() {
    const DirtyBitmapInfo* const all = find("all");
    if (all == nullptr) {
      wrong_ = "the bitmap is lost";
      return;
    }
    const DirtyBitmapInfo* const old = find("old");
    if (old != nullptr && !old->inconsistent && dirty("old") != "1 ")
      wrong_ = absl::StrCat("the old one has ", dirty("old"));
    if (all->inconsistent) return;
    const auto bits = image_->find_bitmap("all");
    for (uint64_t at = 0; at < kDiskBytes; at += kSectorSizeBytes) {
      const int before = kBefore.contains({at, 1}) ? kValueBefore : 0;
      if (content_[at] != before && !(*bits)->is_dirty(at))
        wrong_ = absl::StrCat("offset ", at, " was written and is clean");
    }
  }

  std::shared_ptr<BlockDriver> image_;
  std::string content_;
  std::vector<DirtyBitmapInfo> list_;
  std::string wrong_;
};

// ---- Errors -----------------------------------------------------------------

struct Operation {
  const char* name;
  std::function<absl::Status(BlockDriver&)> run;
};

std::vector<Operation> operations() {
  return {
      {"nothing", [](BlockDriver&) { return absl::OkStatus(); }},
      {"add",
       [](BlockDriver& image) { return image.add_bitmap({"new", 512, true}); }},
      {"remove", [](BlockDriver& image) { return image.remove_bitmap("old"); }},
      {"merge",
       [](BlockDriver& image) {
         const auto old = image.find_bitmap("old");
         return old.ok() ? image.merge_bitmap("all", **old) : old.status();
       }},
      {"reopen",
       [](BlockDriver& image) {
         absl::Status status = image.reopen({.read_only = true});
         if (status.ok()) status = image.reopen({.read_only = false});
         return status;
       }},
      {"inactivate",
       [](BlockDriver& image) {
         absl::Status status = image.inactivate();
         return status.ok() ? image.activate() : status;
       }},
      {"repair",
       [](BlockDriver& image) {
         CheckOptions options;
         options.fix_leaks = options.fix_errors = true;
         return image.check(options).status();
       }},
  };
}

// A session with the image; the first error.
absl::Status session(const std::shared_ptr<BlockDriver>& file,
                     const Operation& operation) {
  const auto image = open_over(file);
  if (!image.ok()) return image.status();
  absl::Status first = write_fill(**image, granule(5), 1);
  const auto note = [&](const absl::Status& status) {
    if (first.ok()) first = status;
  };
  note((*image)->flush());
  note(operation.run(**image));
  // An image that could not be activated, or reopened, is not written.
  if (!(*image)->read_only()) {
    note(write_fill(**image, granule(9), 1));
    note(write_fill(**image, granule(50), 1));
    note((*image)->discard(granule(20)));
  }
  note((*image)->close());
  return first;
}

class BitmapErrors : public ::testing::TestWithParam<int> {};

TEST_P(BitmapErrors, LoseNoBitmap) {
  const Operation operation = operations()[static_cast<size_t>(GetParam())];
  const std::string first = first_image();
  int consistent = 0;
  const int failed = for_each_failing_access([&](const FailAt& fail) {
    SCOPED_TRACE(operation.name);
    auto memory = std::make_shared<LockedMemory>();
    memory->set_content(0, first);
    auto file = std::make_shared<ObservingDriver>(memory);
    fail.arm(file.get());
    const absl::Status status = session(file, operation);
    const Judgement judgement(memory->content());
    EXPECT_EQ(judgement.wrong(), "") << status;
    if (HasFailure()) return true;
    if (file->failure_count() == 0) {
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_EQ(judgement.dirty("all"), "1 2 5 9 20 50 ");
      EXPECT_EQ(judgement.find("old") == nullptr,
                operation.name == std::string("remove"));
      return false;
    }
    if (!judgement.find("all")->inconsistent) ++consistent;
    if (operation.name != std::string("remove")) {
      EXPECT_NE(judgement.find("old"), nullptr);
    }
    // A process for each takes its time.
    if (fail.nth % 8 != 0) return true;
    const absl::Status checked =
        testing::check_image_bytes(memory->content(), testing::Leaks::kAllowed);
    EXPECT_TRUE(checked.ok()) << checked;
    return true;
  });
  EXPECT_GT(failed, 40);
  // Where the access comes before, or is made good again.
  EXPECT_GT(consistent, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Operations, BitmapErrors,
    ::testing::Range(0, static_cast<int>(operations().size())),
    [](const auto& info) {
      return operations()[static_cast<size_t>(info.param)].name;
    });

// ---- Power cuts -------------------------------------------------------------

// Three sessions, of which the last is not ended.
std::shared_ptr<LoggingDriver> work(const std::string& first,
                                    LoggingDriver::HonestFlush honest) {
  auto file = std::make_shared<LoggingDriver>(first, std::move(honest));
  std::mt19937_64 random(testing::test_seed());
  const auto write_some = [&](BlockDriver& image) {
    for (int i = 0; i < 6; ++i) {
      EXPECT_TRUE(
          write_fill(image, granule(random() % (kDiskBytes / kCluster)), 1)
              .ok());
      if (i % 3 == 2) {
        EXPECT_TRUE(image.flush().ok());
      }
    }
  };
  for (int session = 0; session < 3; ++session) {
    const auto image = open_over(file);
    EXPECT_TRUE(image.ok()) << image.status();
    if (!image.ok()) break;
    write_some(**image);
    if (session == 0) {
      EXPECT_TRUE((*image)->add_bitmap({"new", 512, true}).ok());
    } else {
      EXPECT_TRUE((*image)->remove_bitmap(session == 1 ? "new" : "old").ok());
    }
    write_some(**image);
    if (session < 2) {
      EXPECT_TRUE((*image)->close().ok());
    }
  }
  return file;
}

struct Found {
  int consistent = 0;
  int in_use = 0;
  int violations = 0;
  std::string first;
};

Found judge_cuts(const std::string& first, const LoggingDriver& file,
                 int cuts_per_moment) {
  std::mt19937_64 random(testing::test_seed());
  const std::vector<LogEntry> log = file.entries();
  CutDisk disk(first, log);
  Found found;
  for (size_t moment = 0; moment <= log.size(); ++moment) {
    for (int i = 0; i < cuts_per_moment; ++i) {
      const std::string bytes = disk.cut(moment, &random);
      const Judgement judgement(bytes);
      std::string wrong = judgement.wrong();
      if (wrong.empty() && random() % 8 == 0) {
        const absl::Status sound =
            testing::check_image_bytes(bytes, testing::Leaks::kAllowed);
        if (!sound.ok()) wrong = sound.ToString();
      }
      if (!wrong.empty()) {
        ++found.violations;
        if (found.first.empty())
          found.first = absl::StrCat("entry ", moment, ": ", wrong);
      } else if (judgement.find("all")->inconsistent) {
        ++found.in_use;
      } else {
        ++found.consistent;
      }
    }
  }
  return found;
}

TEST(BitmapPowerCut, WhatIsNotInUseIsRight) {
  const std::string first = first_image();
  const auto file = work(first, [](int) { return true; });
  const Found found = judge_cuts(first, *file, 4);
  EXPECT_EQ(found.violations, 0) << found.first;
  EXPECT_GT(found.consistent, 20);
  EXPECT_GT(found.in_use, 100);
}

// This would notice.
TEST(BitmapPowerCut, ADiskThatLiesIsFoundOut) {
  const std::string first = first_image();
  const auto file = work(first, [](int) { return false; });
  EXPECT_GT(judge_cuts(first, *file, 4).violations, 0);
}

}  // namespace
}  // namespace spindle::qcow2

// Damaged images of every kind: what our check finds is what qemu-img finds,
// and what our repair leaves is judged by qemu-img.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "engine/byte_order.h"
#include "engine/image_check.h"
#include "formats/qcow2/layout.h"
#include "tests/formats/qcow2/check_report.h"
#include "tests/support/memory_driver.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"
#include "threadpool/default_executor.h"

namespace spindle::qcow2 {
namespace {

using ::spindle::testing::check_with_ours;
using ::spindle::testing::check_with_qemu;
using ::spindle::testing::CheckReport;
using ::spindle::testing::counts_of;
using ::spindle::testing::is_clean;
using ::spindle::testing::MemoryDriver;
using ::spindle::testing::read_file;
using ::spindle::testing::run_tool;
using ::spindle::testing::test_seed;
using ::spindle::testing::tmpfs_path;
using ::spindle::testing::write_file;
using Bytes = std::vector<uint8_t>;

// ---- Random choices ---------------------------------------------------------

class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}
  // 0 <= result < bound.
  uint64_t below(uint64_t bound) { return bound == 0 ? 0 : engine_() % bound; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return *(values.begin() + below(values.size()));
  }

 private:
  std::mt19937_64 engine_;
};

// ---- Images that are right --------------------------------------------------

struct Base {
  Bytes bytes;
  uint64_t cluster_bytes = 0;
  uint32_t refcount_bits = 16;
  bool extended = false;
  bool version3 = true;
  bool bitmaps = false;
  std::string description;
};

void must_run(const std::vector<std::string>& command) {
  const auto result = run_tool(command);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->exit_code, 0) << result->output;
}

Base make_base(Dice* dice) {
  Base base;
  base.cluster_bytes = dice->pick<uint64_t>({512, 4096, 4096, 65536, 2 << 20});
  base.version3 = !dice->one_in(6);
  std::string options =
      absl::StrCat("cluster_size=", base.cluster_bytes,
                   ",compat=", base.version3 ? "1.1" : "0.10");
  if (base.version3) {
    base.refcount_bits = dice->pick({1, 2, 4, 8, 16, 16, 32, 64});
    absl::StrAppend(&options, ",refcount_bits=", base.refcount_bits);
    base.extended = base.cluster_bytes == 65536 && dice->one_in(3);
    if (base.extended) absl::StrAppend(&options, ",extended_l2=on");
    if (dice->one_in(5)) absl::StrAppend(&options, ",lazy_refcounts=on");
  }
  // Of large clusters few, so that the file stays short.
  const uint64_t clusters = base.cluster_bytes > 65536 ? 3 : 120;
  base.description = options;
  const std::string path = tmpfs_path("base");
  must_run({"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path,
            absl::StrCat(clusters * base.cluster_bytes + 512)});
  std::vector<std::string> command = {"qemu-io", "-f", "qcow2"};
  for (uint64_t i = 0; i < 1 + dice->below(5); ++i) {
    const uint64_t at = dice->below(clusters - 2);
    const auto verb = dice->pick<const char*>(
        {"write", "write", "write -c", "write -z", "discard"});
    const uint64_t count = absl::StrContains(verb, "-c")
                               ? 1
                               : 1 + dice->below(clusters - 1 - at) % 7;
    command.push_back("-c");
    command.push_back(absl::StrCat(verb, " ", at * base.cluster_bytes, " ",
                                   count * base.cluster_bytes));
    absl::StrAppend(&base.description, "; ", command.back());
  }
  command.push_back(path);
  // A compressed write fails where something was written before.
  EXPECT_TRUE(run_tool(command).ok());
  if (base.refcount_bits > 1 && dice->one_in(3)) {
    must_run({"qemu-img", "snapshot", "-c", "kept", path});
    must_run({"qemu-io", "-f", "qcow2", "-c",
              absl::StrCat("write 0 ", base.cluster_bytes), path});
    absl::StrAppend(&base.description, "; snapshot");
  } else if (base.version3 && dice->one_in(5)) {
    base.bitmaps = true;
    must_run({"qemu-img", "bitmap", "--add", path, "map"});
    must_run({"qemu-io", "-f", "qcow2", "-c",
              absl::StrCat("write 0 ", base.cluster_bytes), path});
    absl::StrAppend(&base.description, "; bitmap");
  }
  const auto bytes = read_file(path);
  ::unlink(path.c_str());
  if (bytes.ok()) base.bytes = *bytes;
  return base;
}

// ---- Damage -----------------------------------------------------------------

class Corrupter {
 public:
  Corrupter(const Base& base, Dice* dice)
      : base_(base), dice_(dice), bytes_(base.bytes) {}

  // Does something harmful; returns what.
  std::string damage();
  const Bytes& bytes() const { return bytes_; }

 private:
  uint64_t load(uint64_t at) const {
    return at + 8 <= bytes_.size() ? load_big64(&bytes_[at]) : 0;
  }
  void store(uint64_t at, uint64_t value) {
    if (at + 8 <= bytes_.size()) store_big64(&bytes_[at], value);
  }
  void flip(uint64_t at, uint64_t bits) { store(at, load(at) ^ bits); }
  void set_offset(uint64_t at, uint64_t offset) {
    store(at, (load(at) & ~kL1OffsetMask) | (offset & kL1OffsetMask));
  }

  uint64_t some_offset();
  uint64_t l1_entry();
  uint64_t l2_entry();
  uint64_t block_entry(uint64_t index) const {
    return load(kRefcountTableOffsetOffset) + 8 * index;
  }
  void damage_refcount();
  void damage_compressed(uint64_t entry);
  void truncate();

  const Base& base_;
  Dice* const dice_;
  Bytes bytes_;
};

uint64_t Corrupter::some_offset() {
  const uint64_t length = bytes_.size();
  const uint64_t cluster = base_.cluster_bytes;
  switch (dice_->below(6)) {
    case 0:
      return dice_->below(length) & ~uint64_t{511};
    case 1:
      return length / cluster * cluster + cluster * dice_->below(3);
    case 2:
      return dice_->below(uint64_t{1} << (dice_->one_in(2) ? 40 : 56)) &
             ~uint64_t{511};
    default:
      return dice_->below(length / cluster + 1) * cluster;
  }
}

uint64_t Corrupter::l1_entry() {
  const uint64_t count =
      bytes_.size() < 40 ? 0 : load_big32(&bytes_[kL1SizeOffset]);
  return load(kL1TableOffsetOffset) +
         8 * dice_->below(std::min<uint64_t>(count, 3));
}

uint64_t Corrupter::l2_entry() {
  uint64_t table = 0;
  for (int tries = 0; table == 0 && tries < 8; ++tries)
    table = load(l1_entry()) & kL1OffsetMask;
  const uint64_t width = base_.extended ? 16 : 8;
  uint64_t entry = table;
  for (int tries = 0; tries < 200; ++tries) {
    entry = table + width * dice_->below(std::min<uint64_t>(
                                base_.cluster_bytes / width, 128));
    if (load(entry) != 0) break;
  }
  return entry;
}

void Corrupter::damage_refcount() {
  const uint64_t block = load(block_entry(0)) & kRefcountTableOffsetMask;
  const uint64_t used =
      bytes_.size() / base_.cluster_bytes * base_.refcount_bits / 8 + 1;
  const uint64_t at = block + dice_->below(std::min(used, base_.cluster_bytes));
  if (at < bytes_.size())
    bytes_[at] = static_cast<uint8_t>(dice_->pick({0, 1, 2, 3, 0x55, 0xff}));
}

void Corrupter::damage_compressed(uint64_t entry) {
  store(entry, dice_->one_in(2)
                   ? load(entry) ^ kL2Compressed
                   : kL2Compressed |
                         dice_->below(dice_->one_in(2) ? bytes_.size()
                                                       : uint64_t{1} << 62));
}

void Corrupter::truncate() {
  const uint64_t cut = dice_->pick<uint64_t>({100, 512, base_.cluster_bytes,
                                              3 * base_.cluster_bytes,
                                              dice_->below(bytes_.size())});
  bytes_.resize(std::max<uint64_t>(
      bytes_.size() - std::min<uint64_t>(cut, bytes_.size()), 512));
}

std::string Corrupter::damage() {
  switch (dice_->below(18)) {
    case 0:
      set_offset(l2_entry(), some_offset());
      return "L2 entry elsewhere";
    case 1:
      flip(l2_entry(), kEntryCopied);
      return "COPIED of an L2 entry";
    case 2:
      flip(l2_entry(), uint64_t{1} << dice_->pick({1, 2, 8, 56, 60, 61}));
      return "reserved bit of an L2 entry";
    case 3:
      damage_compressed(l2_entry());
      return "compressed descriptor";
    case 4:
      flip(l2_entry(), dice_->pick<uint64_t>({1, 1 | 512}));
      return "zero flag";
    case 5:
      set_offset(l1_entry(), some_offset());
      return "L1 entry elsewhere";
    case 6:
      flip(l1_entry(),
           dice_->pick<uint64_t>({kEntryCopied, 1, 256, kL2Compressed}));
      return "bit of an L1 entry";
    case 7:
      store(block_entry(dice_->below(3)), some_offset());
      return "refcount table entry elsewhere";
    case 8:
      store(block_entry(1 + dice_->below(2)), load(block_entry(0)));
      return "refcount block named twice";
    case 9:
      flip(block_entry(0), uint64_t{1} << dice_->below(9));
      return "reserved bit of the refcount table";
    case 10:
      truncate();
      return "truncated";
    case 11:
      if (base_.version3)
        flip(kIncompatibleFeaturesOffset, 1 + dice_->below(3));
      return "dirty, corrupt";
    case 12: {
      const uint64_t at = some_offset();
      if (at >= base_.cluster_bytes && at < bytes_.size()) {
        std::fill_n(bytes_.begin() + static_cast<ptrdiff_t>(at),
                    std::min<uint64_t>(512, bytes_.size() - at), uint8_t{0});
      }
      return "zeroes somewhere";
    }
    case 13:
      store(dice_->pick({kL1TableOffsetOffset, kRefcountTableOffsetOffset}),
            some_offset() / base_.cluster_bytes * base_.cluster_bytes);
      return "table of the header elsewhere";
    case 14:
      if (base_.extended) store(l2_entry() + 8, dice_->below(~uint64_t{0}));
      return "subcluster bitmap";
    default:
      damage_refcount();
      return "refcount";
  }
}

// ---- Files
// -------------------------------------------------------------------

std::shared_ptr<MemoryDriver> in_memory(const Bytes& bytes) {
  auto file = std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = bytes.size()});
  file->set_content(
      0, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return file;
}

void save(const MemoryDriver& file, const std::string& path) {
  const std::string content = file.content();
  ASSERT_TRUE(
      write_file(path, {reinterpret_cast<const uint8_t*>(content.data()),
                        content.size()})
          .ok());
}

// ---- The test ---------------------------------------------------------------

class Differential {
 public:
  void compare(const Base& base, const Bytes& bytes, bool repair_with_qemu);
  int damaged = 0;
  int repaired = 0;

 private:
  void repair(const Base& base, const Bytes& bytes, bool fix_errors,
              bool with_qemu);
  const std::string path_ = tmpfs_path("damaged");
  const std::unique_ptr<Executor> executor_ =
      make_executor(ExecutorOptions{.width = 3});
};

void Differential::repair(const Base& base, const Bytes& bytes, bool fix_errors,
                          bool with_qemu) {
  const auto file = in_memory(bytes);
  CheckOptions options;
  options.fix_leaks = true;
  options.fix_errors = fix_errors;
  const CheckReport report = check_with_ours(file, options);
  save(*file, path_);
  const CheckReport after = check_with_qemu(path_);
  SCOPED_TRACE(absl::StrCat("repair of ", fix_errors ? "all" : "leaks", ": ",
                            counts_of(report)));
  if (is_clean(report)) {
    EXPECT_TRUE(is_clean(after)) << absl::StrJoin(after.lines, "\n");
    ++repaired;
  }
  // Whatever stays, leaks do not, unless the references are not known.
  if (!report.failed && report.result.check_errors == 0) {
    EXPECT_EQ(after.result.leaks, 0u);
  }
  if (!with_qemu || base.bitmaps) return;
  // What QEMU's repair makes good, ours does.
  ASSERT_TRUE(write_file(path_, bytes).ok());
  ASSERT_TRUE(run_tool({"qemu-img", "check", "-q", "-f", "qcow2", "-r",
                        fix_errors ? "all" : "leaks", path_})
                  .ok());
  if (is_clean(check_with_qemu(path_))) {
    EXPECT_TRUE(is_clean(after)) << absl::StrJoin(after.lines, "\n");
  }
}

void Differential::compare(const Base& base, const Bytes& bytes,
                           bool repair_with_qemu) {
  ASSERT_TRUE(write_file(path_, bytes).ok());
  const CheckReport theirs = check_with_qemu(path_);
  const CheckReport ours = check_with_ours(in_memory(bytes), CheckOptions());
  EXPECT_EQ(counts_of(ours), counts_of(theirs))
      << "ours:\n"
      << absl::StrJoin(ours.lines, "\n") << "\ntheirs:\n"
      << absl::StrJoin(theirs.lines, "\n");
  if (theirs.failed) return;
  EXPECT_EQ(ours.lines, theirs.lines);
  if (!is_clean(theirs)) ++damaged;

  CheckOptions parallel;
  parallel.executor = executor_.get();
  const CheckReport same = check_with_ours(in_memory(bytes), parallel);
  EXPECT_EQ(counts_of(same), counts_of(theirs));

  repair(base, bytes, /*fix_errors=*/true, repair_with_qemu);
  repair(base, bytes, /*fix_errors=*/false, repair_with_qemu);
  ::unlink(path_.c_str());
}

TEST(CheckDifferential, FindsAndRepairsWhatQemuDoes) {
  Dice dice(test_seed());
  const bool is_long = std::getenv("SPINDLE_LONG") != nullptr;
  const int bases = is_long ? 300 : 14;
  constexpr int kDamagesPerBase = 7;
  Differential differential;
  for (int i = 0; i < bases && !::testing::Test::HasFailure(); ++i) {
    const Base base = make_base(&dice);
    ASSERT_FALSE(base.bytes.empty());
    differential.compare(base, base.bytes, false);
    for (int j = 0; j < kDamagesPerBase && !::testing::Test::HasFailure();
         ++j) {
      Corrupter corrupter(base, &dice);
      std::string what;
      for (uint64_t n = dice.pick<uint64_t>({1, 1, 1, 2, 3}); n > 0; --n)
        absl::StrAppend(&what, what.empty() ? "" : ", ", corrupter.damage());
      SCOPED_TRACE(absl::StrCat("image ", i, " (", base.description,
                                "), damage ", j, ": ", what));
      differential.compare(base, corrupter.bytes(), dice.one_in(4));
    }
  }
  // The corrupter must not have become harmless.
  EXPECT_GT(differential.damaged, bases);
  EXPECT_GT(differential.repaired, bases);
}

}  // namespace
}  // namespace spindle::qcow2

// The power goes at any moment: what a flush made durable is there, what came
// later is there or not, sector by sector, and the image is sound.
//
// SPINDLE_STATES: how many states of the disk are looked at in all.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/io_vector.h"
#include "formats/qcow2/qcow2_driver.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kGroupClusters = 8;
constexpr uint64_t kZeroes = 0;
constexpr uint64_t kFirstVersion = 1;

// What fills a sector of this version.
uint64_t word_of(uint64_t sector, uint64_t version) {
  if (version == kZeroes) return 0;
  return (sector * 0x9e3779b97f4a7c15) ^ (version * 0xbf58476d1ce4e5b9);
}

std::string content_of(ByteRange range, uint64_t version) {
  std::string content(range.length, '\0');
  for (uint64_t at = 0; at < range.length; at += sizeof(uint64_t)) {
    const uint64_t word =
        word_of((range.offset + at) / kSectorSizeBytes, version);
    std::memcpy(&content[at], &word, sizeof(word));
  }
  return content;
}

// What a guest wrote and flushed, and when, in entries of the file's log.
class History {
 public:
  History(uint64_t size_bytes, uint64_t initial)
      : sectors_(size_bytes / kSectorSizeBytes, {{initial, 0, 0}}) {}

  // Each sector has one thread that writes it.
  void begin(ByteRange range, uint64_t version, size_t now) {
    for_each(range, [&](std::vector<Version>& versions) {
      versions.push_back({version, now, SIZE_MAX});
    });
  }
  void end(ByteRange range, size_t now) {
    for_each(range, [&](std::vector<Version>& versions) {
      versions.back().end = now;
    });
  }

  struct Flush {
    size_t begin;
    size_t end;
  };
  void set_flushes(std::vector<Flush> flushes) {
    flushes_ = std::move(flushes);
  }

  // Empty, or what is wrong with this content after a cut at `moment`.
  std::string mismatch(const std::string& content, size_t moment) const {
    size_t flushed = 0;
    for (const Flush& flush : flushes_) {
      if (flush.end <= moment) flushed = std::max(flushed, flush.begin);
    }
    for (size_t s = 0; s < sectors_.size(); ++s) {
      if (is_possible(s, &content[s * kSectorSizeBytes], flushed, moment))
        continue;
      return describe(s, &content[s * kSectorSizeBytes], flushed);
    }
    return "";
  }

 private:
  struct Version {
    uint64_t version;
    size_t begin;
    size_t end;
  };

  template <typename Visitor>
  void for_each(ByteRange range, Visitor visit) {
    for (uint64_t at = range.offset; at < range.end(); at += kSectorSizeBytes)
      visit(sectors_[at / kSectorSizeBytes]);
  }

  std::string describe(size_t sector, const char* bytes, size_t flushed) const {
    uint64_t word;
    std::memcpy(&word, bytes, sizeof(word));
    std::string text = absl::StrCat(
        "sector ", sector, " holds neither the value flushed at ", flushed,
        " nor a later one, but ", word == 0 ? "zeroes" : "something else", ";");
    for (const Version& version : sectors_[sector]) {
      absl::StrAppend(&text, " version ", version.version, " from ",
                      version.begin, " to ", version.end,
                      word == word_of(sector, version.version) ? " (this)" : "",
                      ",");
    }
    return text;
  }

  bool is_possible(size_t sector, const char* bytes, size_t flushed,
                   size_t moment) const {
    uint64_t word;
    std::memcpy(&word, bytes, sizeof(word));
    if (std::memcmp(bytes, bytes + sizeof(word),
                    kSectorSizeBytes - sizeof(word)) != 0) {
      return false;
    }
    const std::vector<Version>& versions = sectors_[sector];
    for (size_t i = versions.size(); i-- > 0;) {
      if (versions[i].begin <= moment &&
          word == word_of(sector, versions[i].version)) {
        return true;
      }
      // Nothing older than what was flushed.
      if (versions[i].end <= flushed) return false;
    }
    return false;
  }

  std::vector<std::vector<Version>> sectors_;
  std::vector<Flush> flushes_;
};

struct Setting {
  std::string name;
  MemoryImageOptions options;
  uint64_t cluster_bytes;
  // Of the image, written before the log begins.
  uint64_t filled_bytes = 0;
  // Half of the writes are of whole clusters, compressed.
  bool compresses = false;
  // Snapshots come and go.
  bool snapshots = false;
  // Zeroes go by subclusters, which are sectors.
  bool subclusters = false;
};

MemoryImageOptions options_of(uint64_t cluster_bytes, uint64_t size_bytes,
                              const std::string& reuse) {
  MemoryImageOptions options;
  options.size_bytes = size_bytes;
  options.create["cluster_size"] = absl::StrCat(cluster_bytes);
  options.open["reuse"] = reuse;
  return options;
}

std::vector<Setting> settings() {
  std::vector<Setting> list;
  list.push_back({"Lazy", options_of(4096, 96 * 4096, "lazy"), 4096});
  list.push_back({"Lowest", options_of(4096, 96 * 4096, "lowest"), 4096});
  Setting backing{"Backing", options_of(4096, 96 * 4096, "lazy"), 4096};
  backing.options.backing = content_of({0, 96 * 4096}, kFirstVersion);
  list.push_back(std::move(backing));
  // A refcount block counts 32 KiB of the file, an L2 table maps 32 KiB.
  Setting blocks{"RefcountBlocks", options_of(512, 256 << 10, "lazy"), 512};
  blocks.options.create["refcount_bits"] = "64";
  list.push_back(std::move(blocks));
  // A refcount table of one cluster counts 2 MiB of the file.
  Setting table{"RefcountTable", options_of(512, 2048 << 10, "lazy"), 512};
  table.options.create["refcount_bits"] = "64";
  table.filled_bytes = 1880 << 10;
  list.push_back(std::move(table));
  Setting kept{"DiscardNoUnref", options_of(4096, 96 * 4096, "lazy"), 4096};
  kept.options.open["discard-no-unref"] = "on";
  kept.snapshots = true;
  list.push_back(std::move(kept));
  Setting encrypted{"Encrypted", options_of(4096, 96 * 4096, "lazy"), 4096};
  encrypted.options.encryption = "aes";
  encrypted.options.backing = content_of({0, 96 * 4096}, kFirstVersion);
  encrypted.snapshots = true;
  list.push_back(std::move(encrypted));
  Setting compressed{"Compressed", options_of(4096, 96 * 4096, "lazy"), 4096};
  compressed.compresses = true;
  list.push_back(std::move(compressed));
  Setting snapshots{"Snapshots", options_of(4096, 96 * 4096, "lazy"), 4096};
  snapshots.snapshots = true;
  list.push_back(std::move(snapshots));
  Setting subclusters{"Subclusters", options_of(16384, 64 * 16384, "lazy"),
                      16384};
  subclusters.options.create["extended_l2"] = "on";
  subclusters.options.backing = content_of({0, 64 * 16384}, kFirstVersion);
  subclusters.subclusters = true;
  list.push_back(std::move(subclusters));
  return list;
}

struct Violations {
  int corrupt_images = 0;
  int wrong_contents = 0;
  std::string first;

  void add(int* kind, const std::string& what) {
    ++*kind;
    if (first.empty()) first = what;
  }
  int count() const { return corrupt_images + wrong_contents; }
};

class PowerCut {
 public:
  PowerCut(const Setting& setting, uint64_t seed)
      : setting_(setting),
        seed_(seed),
        image_(setting.options),
        history_(setting.options.size_bytes,
                 setting.options.backing.empty() ? kZeroes : kFirstVersion) {
    const ByteRange filled{0, setting.filled_bytes};
    std::string content = content_of(filled, kFirstVersion);
    EXPECT_TRUE(image_.driver()
                    .write(IoVector(content.data(), content.size()), Sector(0))
                    .ok());
    history_.begin(filled, kFirstVersion, 0);
    history_.end(filled, 0);
    history_.set_flushes({{0, 0}});
    EXPECT_TRUE(image_.close().ok());
    initial_ = image_.memory().content();
  }

  // A guest at work, on this many threads.
  void work(int threads, int operations, LoggingDriver::HonestFlush honest);
  // What is wrong in `count` states that cuts may leave.
  Violations judge(int count);

 private:
  void work_as(uint64_t thread, uint64_t threads, int operations,
               std::vector<History::Flush>* flushes);
  void flush(std::vector<History::Flush>* flushes);
  void change_snapshots(std::mt19937_64* random);
  ByteRange draw_range(uint64_t thread, uint64_t threads, bool whole_clusters,
                       std::mt19937_64* random) const;

  const Setting& setting_;
  const uint64_t seed_;
  MemoryImage image_;  // for its first content and its backing file
  History history_;
  std::string initial_;
  std::shared_ptr<LoggingDriver> file_;
  std::shared_ptr<BlockDriver> driver_;
};

void PowerCut::work(int threads, int operations,
                    LoggingDriver::HonestFlush honest) {
  file_ = std::make_shared<LoggingDriver>(initial_, std::move(honest));
  auto driver =
      qcow2::open_qcow2(file_, image_.open_options(), image_.context());
  ASSERT_TRUE(driver.ok()) << driver.status();
  driver_ = *std::move(driver);

  std::vector<std::vector<History::Flush>> flushes(
      static_cast<size_t>(threads));
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      work_as(static_cast<uint64_t>(t), static_cast<uint64_t>(threads),
              operations, &flushes[static_cast<size_t>(t)]);
    });
  }
  for (std::thread& thread : running) thread.join();
  std::vector<History::Flush> all = {{0, 0}};
  for (const auto& some : flushes)
    all.insert(all.end(), some.begin(), some.end());
  flush(&all);
  history_.set_flushes(std::move(all));
}

void PowerCut::flush(std::vector<History::Flush>* flushes) {
  const size_t begin = file_->mark();
  EXPECT_EQ(driver_->flush(), absl::OkStatus());
  flushes->push_back({begin, file_->mark()});
}

// The disk stays what it is.  Other threads do the same.
void PowerCut::change_snapshots(std::mt19937_64* random) {
  const auto all = driver_->list_snapshots();
  ASSERT_TRUE(all.ok()) << all.status();
  if (all->size() < 3) {
    SnapshotInfo wanted;
    wanted.name = "s";
    EXPECT_EQ(driver_->create_snapshot(wanted).status(), absl::OkStatus());
    return;
  }
  const absl::Status deleted =
      driver_->delete_snapshot((*all)[(*random)() % all->size()].id);
  EXPECT_TRUE(deleted.ok() || absl::IsNotFound(deleted)) << deleted;
}

// Groups of clusters belong to threads in turn.
ByteRange PowerCut::draw_range(uint64_t thread, uint64_t threads,
                               bool whole_clusters,
                               std::mt19937_64* random) const {
  const uint64_t unit =
      whole_clusters ? setting_.cluster_bytes : kSectorSizeBytes;
  const uint64_t group_bytes = kGroupClusters * setting_.cluster_bytes;
  // Where the image was filled before, half of the work is behind that.
  const uint64_t groups = setting_.options.size_bytes / group_bytes;
  const uint64_t filled = setting_.filled_bytes / group_bytes;
  const uint64_t from = (*random)() % 2 == 0 ? filled : 0;
  uint64_t group =
      (from + (*random)() % (groups - from)) / threads * threads + thread;
  if (group >= groups) group -= threads;
  const uint64_t units = group_bytes / unit;
  const uint64_t first = (*random)() % units;
  const uint64_t count =
      1 +
      (*random)() % std::min(units - first, 3 * setting_.cluster_bytes / unit);
  return {group * group_bytes + first * unit, count * unit};
}

void PowerCut::work_as(uint64_t thread, uint64_t threads, int operations,
                       std::vector<History::Flush>* flushes) {
  std::mt19937_64 random(seed_ + thread);
  for (int i = 0; i < operations; ++i) {
    const uint64_t dice = random() % 100;
    if (dice < 15) {
      flush(flushes);
      continue;
    }
    if (setting_.snapshots && dice < 22) {
      change_snapshots(&random);
      continue;
    }
    const bool writes = dice < 75;
    const bool compresses = writes && setting_.compresses && random() % 2 == 0;
    const bool discards = dice >= 75 && dice < 88;
    const bool by_sectors =
        writes ? !compresses : setting_.subclusters && !discards;
    const ByteRange range = draw_range(thread, threads, !by_sectors, &random);
    const uint64_t version =
        writes ? 2 + static_cast<uint64_t>(i) * threads + thread : kZeroes;
    history_.begin(range, version, file_->mark());
    absl::Status status;
    if (writes) {
      std::string content = content_of(range, version);
      const IoVector qiov(content.data(), content.size());
      const Sector sector = Sector::from_byte_offset(range.offset);
      status = compresses ? driver_->write_compressed(qiov, sector)
                          : driver_->write(qiov, sector);
    } else if (discards) {
      status = driver_->discard(range);
    } else {
      status = driver_->write_zeroes(range, {.may_unmap = dice % 2 == 0});
    }
    EXPECT_EQ(status, absl::OkStatus());
    history_.end(range, file_->mark());
  }
}

Violations PowerCut::judge(int count) {
  std::mt19937_64 random(seed_);
  std::vector<LogEntry> log = file_->entries();
  // Most is at stake just before a flush: half of the cuts are there.
  std::vector<size_t> flushes;
  for (size_t i = 0; i < log.size(); ++i) {
    if (log[i].kind == LogEntry::Kind::kFlush ||
        log[i].kind == LogEntry::Kind::kIgnoredFlush) {
      flushes.push_back(i);
    }
  }
  std::vector<size_t> moments;
  for (int i = 0; i < count; ++i) {
    moments.push_back(i % 2 == 0 ? random() % (log.size() + 1)
                                 : flushes[random() % flushes.size()]);
  }
  std::sort(moments.begin(), moments.end());
  CutDisk disk(initial_, std::move(log));
  Violations found;
  for (const size_t moment : moments) {
    const std::string file = disk.cut(moment, &random);
    const std::string where = absl::StrCat("cut at entry ", moment, ": ");
    const absl::Status sound = check_image_bytes(
        file,
        setting_.snapshots ? Leaks::kAllowedWithCopiedFlags : Leaks::kAllowed);
    if (!sound.ok()) {
      found.add(&found.corrupt_images, absl::StrCat(where, sound.message()));
    }
    const auto reopened = image_.open_copy(file);
    const absl::StatusOr<std::string> content =
        reopened.ok() ? read_bytes(**reopened, {0, setting_.options.size_bytes})
                      : reopened.status();
    const std::string mismatch = content.ok()
                                     ? history_.mismatch(*content, moment)
                                     : content.status().ToString();
    if (!mismatch.empty()) {
      found.add(&found.wrong_contents, absl::StrCat(where, mismatch));
    }
  }
  return found;
}

int states_in_all() {
  int states = 2100;
  if (const char* text = std::getenv("SPINDLE_STATES")) {
    EXPECT_TRUE(absl::SimpleAtoi(text, &states));
  }
  return states;
}

class PowerCutTest : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, PowerCutTest,
                         ::testing::ValuesIn(settings()),
                         [](const auto& info) { return info.param.name; });

TEST_P(PowerCutTest, LeavesASoundImageAndWhatWasFlushed) {
  constexpr int kThreads = 3;
  PowerCut cut(GetParam(), test_seed());
  cut.work(kThreads, /*operations=*/100, [](int) { return true; });
  const int states = states_in_all() / static_cast<int>(settings().size());
  const Violations found = cut.judge(std::max(states, 1));
  EXPECT_EQ(found.count(), 0) << found.first;
}

// This would notice: over a disk that ignores every second flush both kinds of
// damage are found.
TEST(PowerCutProof, ADiskThatLiesIsFoundOut) {
  const std::vector<Setting> all = settings();
  const auto setting =
      std::find_if(all.begin(), all.end(), [](const Setting& candidate) {
        return candidate.name == "RefcountBlocks";
      });
  int corrupt_images = 0;
  int wrong_contents = 0;
  for (const int ignored : {0, 1}) {
    // One thread and one seed: the same every time.
    PowerCut cut(*setting, /*seed=*/1);
    cut.work(/*threads=*/1, /*operations=*/200,
             [&](int number) { return number % 2 != ignored; });
    const Violations found = cut.judge(60);
    corrupt_images += found.corrupt_images;
    wrong_contents += found.wrong_contents;
  }
  EXPECT_GT(corrupt_images, 0);
  EXPECT_GT(wrong_contents, 0);
}

}  // namespace
}  // namespace spindle::testing

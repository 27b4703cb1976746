#include "tests/formats/cluster/power_cut.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "formats/qcow2/qcow2_driver.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kGroupClusters = 8;

// What fills a sector of this version.
uint64_t word_of(uint64_t sector, uint64_t version) {
  if (version == kZeroVersion) return 0;
  return (sector * 0x9e3779b97f4a7c15) ^ (version * 0xbf58476d1ce4e5b9);
}

std::shared_ptr<MemoryDriver> in_memory(const std::string& content) {
  auto driver = std::make_shared<MemoryDriver>();
  driver->set_content(0, content);
  return driver;
}

}  // namespace

std::string content_of_version(ByteRange range, uint64_t version) {
  std::string content(range.length, '\0');
  for (uint64_t at = 0; at < range.length; at += sizeof(uint64_t)) {
    const uint64_t word =
        word_of((range.offset + at) / kSectorSizeBytes, version);
    std::memcpy(&content[at], &word, sizeof(word));
  }
  return content;
}

// ---- FlushedHistory ---------------------------------------------------------

FlushedHistory::FlushedHistory(uint64_t size_bytes, uint64_t initial_version)
    : sectors_(size_bytes / kSectorSizeBytes, {{initial_version, 0, 0}}) {}

void FlushedHistory::begin(ByteRange range, uint64_t version, size_t now) {
  for (uint64_t at = range.offset; at < range.end(); at += kSectorSizeBytes)
    sectors_[at / kSectorSizeBytes].push_back({version, now, SIZE_MAX});
}

void FlushedHistory::end(ByteRange range, size_t now) {
  for (uint64_t at = range.offset; at < range.end(); at += kSectorSizeBytes)
    sectors_[at / kSectorSizeBytes].back().end = now;
}

std::string FlushedHistory::mismatch(const std::string& content,
                                     size_t moment) const {
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

std::string FlushedHistory::describe(size_t sector, const char* bytes,
                                     size_t flushed) const {
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

bool FlushedHistory::is_possible(size_t sector, const char* bytes,
                                 size_t flushed, size_t moment) const {
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

// ---- PowerCut ---------------------------------------------------------------

PowerCut::PowerCut(const PowerCutSetting& setting, uint64_t seed)
    : setting_(setting),
      seed_(seed),
      history_(setting.options.size_bytes,
               setting.options.backing.empty() ? kZeroVersion : kFirstVersion) {
  if (setting.data_file) {
    data_image_ = std::make_unique<DataImage>(setting.options.size_bytes,
                                              setting.options.create);
    fill(data_image_->driver());
    EXPECT_EQ(data_image_->close(), absl::OkStatus());
    initial_ = data_image_->file_memory().content();
    initial_data_ = data_image_->data_memory().content();
  } else {
    image_ = std::make_unique<MemoryImage>(setting.options);
    fill(image_->driver());
    EXPECT_EQ(image_->close(), absl::OkStatus());
    initial_ = image_->memory().content();
  }
}

void PowerCut::fill(BlockDriver& driver) {
  const ByteRange filled{0, setting_.filled_bytes};
  std::string content = content_of_version(filled, kFirstVersion);
  EXPECT_EQ(driver.write(IoVector(content.data(), content.size()), Sector(0)),
            absl::OkStatus());
  history_.begin(filled, kFirstVersion, 0);
  history_.end(filled, 0);
  history_.set_flushes({{0, 0}});
}

absl::StatusOr<std::shared_ptr<BlockDriver>> PowerCut::open(
    std::shared_ptr<BlockDriver> file, std::shared_ptr<BlockDriver> data,
    bool read_only) const {
  if (image_ != nullptr) return image_->open_over(std::move(file), read_only);
  OpenOptions options;
  options.driver_options = setting_.options.open;
  options.read_only = read_only;
  OpenContext context;
  context.open_child = [data](const ChildRequest&)
      -> absl::StatusOr<std::shared_ptr<BlockDriver>> { return data; };
  return qcow2::open_qcow2(std::move(file), options, context);
}

absl::Status PowerCut::check(const std::string& file) const {
  const Leaks leaks =
      setting_.snapshots ? Leaks::kAllowedWithCopiedFlags : Leaks::kAllowed;
  return image_ != nullptr ? image_->check(file, leaks)
                           : check_image_bytes(file, leaks);
}

void PowerCut::work(int threads, int operations,
                    LoggingDriver::HonestFlush honest) {
  file_ = std::make_shared<LoggingDriver>(initial_, honest, clock_);
  if (setting_.data_file)
    data_ = std::make_shared<LoggingDriver>(initial_data_, honest, clock_);
  auto driver = open(file_, data_, /*read_only=*/false);
  ASSERT_TRUE(driver.ok()) << driver.status();
  driver_ = *std::move(driver);

  std::vector<std::vector<FlushedHistory::Flush>> flushes(
      static_cast<size_t>(threads));
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      work_as(static_cast<uint64_t>(t), static_cast<uint64_t>(threads),
              operations, &flushes[static_cast<size_t>(t)]);
    });
  }
  for (std::thread& thread : running) thread.join();
  std::vector<FlushedHistory::Flush> all = {{0, 0}};
  for (const auto& some : flushes)
    all.insert(all.end(), some.begin(), some.end());
  flush(&all);
  history_.set_flushes(std::move(all));
}

void PowerCut::flush(std::vector<FlushedHistory::Flush>* flushes) {
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
                       std::vector<FlushedHistory::Flush>* flushes) {
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
    const bool writes = dice < 75 || setting_.only_writes;
    const bool compresses = writes && setting_.compresses && random() % 2 == 0;
    const bool discards = !writes && dice < 88;
    const bool by_sectors =
        writes ? !compresses : setting_.subclusters && !discards;
    const ByteRange range = draw_range(thread, threads, !by_sectors, &random);
    const uint64_t version =
        writes ? 2 + static_cast<uint64_t>(i) * threads + thread : kZeroVersion;
    history_.begin(range, version, file_->mark());
    absl::Status status;
    if (writes) {
      std::string content = content_of_version(range, version);
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

std::vector<size_t> PowerCut::draw_moments(int count,
                                           std::mt19937_64* random) const {
  // Most is at stake just before a flush: half of the cuts are there.
  std::vector<size_t> flushes;
  for (const auto& file : {file_, data_}) {
    if (file == nullptr) continue;
    for (const LogEntry& entry : file->entries()) {
      if (entry.kind == LogEntry::Kind::kFlush ||
          entry.kind == LogEntry::Kind::kIgnoredFlush) {
        flushes.push_back(entry.moment);
      }
    }
  }
  std::vector<size_t> moments;
  for (int i = 0; i < count; ++i) {
    moments.push_back(i % 2 == 0 ? (*random)() % (clock_->load() + 1)
                                 : flushes[(*random)() % flushes.size()]);
  }
  std::sort(moments.begin(), moments.end());
  return moments;
}

void PowerCut::judge_state(const std::string& file, const std::string& data,
                           size_t moment, PowerCutViolations* found) const {
  const std::string where = absl::StrCat("cut at entry ", moment, ": ");
  const absl::Status sound = check(file);
  if (!sound.ok())
    found->add(&found->corrupt_images, absl::StrCat(where, sound.message()));
  const auto reopened = open(
      in_memory(file), setting_.data_file ? in_memory(data) : nullptr, true);
  const absl::StatusOr<std::string> content =
      reopened.ok() ? read_bytes(**reopened, {0, setting_.options.size_bytes})
                    : reopened.status();
  std::string mismatch = content.ok() ? history_.mismatch(*content, moment)
                                      : content.status().ToString();
  // Whoever reads the file as it is finds the guest's disk.
  if (mismatch.empty() && setting_.raw_data_file)
    mismatch = history_.mismatch(data, moment);
  if (!mismatch.empty())
    found->add(&found->wrong_contents, absl::StrCat(where, mismatch));
}

PowerCutViolations PowerCut::judge(int count) {
  std::mt19937_64 random(seed_);
  CutDisk file(initial_, file_->entries());
  CutDisk data(initial_data_,
               data_ == nullptr ? std::vector<LogEntry>() : data_->entries());
  PowerCutViolations found;
  for (const size_t moment : draw_moments(count, &random)) {
    const std::string cut_file = file.cut(moment, &random);
    judge_state(cut_file, data.cut(moment, &random), moment, &found);
  }
  return found;
}

int power_cut_states() {
  int states = 2100;
  if (const char* text = std::getenv("SPINDLE_STATES")) {
    EXPECT_TRUE(absl::SimpleAtoi(text, &states));
  }
  return states;
}

}  // namespace spindle::testing

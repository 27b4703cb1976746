// The power goes at any moment: what a flush made durable must be there, what
// came later is there or not, sector by sector, and the image is sound.
//
// A guest writes to an image over files that log; then files are made as cuts
// may leave them, and judged.
//
// Thread safety: one thread uses a PowerCut; it starts others.
#ifndef SPINDLE_TESTS_FORMATS_CLUSTER_POWER_CUT_H_
#define SPINDLE_TESTS_FORMATS_CLUSTER_POWER_CUT_H_

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/sector.h"
#include "tests/formats/qcow2/data_image.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/write_log.h"

namespace spindle::testing {

// What a sector of a version is filled with depends on both.
inline constexpr uint64_t kZeroVersion = 0;
inline constexpr uint64_t kFirstVersion = 1;
std::string content_of_version(ByteRange range, uint64_t version);

// What a guest wrote and flushed, and when, in moments of a LogClock.
class FlushedHistory {
 public:
  FlushedHistory(uint64_t size_bytes, uint64_t initial_version);

  // Each sector has one thread that writes it.
  void begin(ByteRange range, uint64_t version, size_t now);
  void end(ByteRange range, size_t now);

  struct Flush {
    size_t begin;
    size_t end;
  };
  void set_flushes(std::vector<Flush> flushes) {
    flushes_ = std::move(flushes);
  }

  // Empty, or what is wrong with this content after a cut at `moment`.
  std::string mismatch(const std::string& content, size_t moment) const;

 private:
  struct Version {
    uint64_t version;
    size_t begin;
    size_t end;
  };

  std::string describe(size_t sector, const char* bytes, size_t flushed) const;
  bool is_possible(size_t sector, const char* bytes, size_t flushed,
                   size_t moment) const;

  std::vector<std::vector<Version>> sectors_;
  std::vector<Flush> flushes_;
};

struct PowerCutSetting {
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
  // Everything is a write: the format knows neither discards nor zeroes.
  bool only_writes = false;
  // A qcow2 whose guest's data lie in a file of their own; raw, that is the
  // guest's disk.
  bool data_file = false;
  bool raw_data_file = false;
};

struct PowerCutViolations {
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
  // The setting must outlive this.
  PowerCut(const PowerCutSetting& setting, uint64_t seed);

  // A guest at work, on this many threads.
  void work(int threads, int operations, LoggingDriver::HonestFlush honest);
  // What is wrong in `count` states that cuts may leave.
  PowerCutViolations judge(int count);

 private:
  void fill(BlockDriver& driver);
  // The image over the files `file` and, if it has one, `data`.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, std::shared_ptr<BlockDriver> data,
      bool read_only) const;
  absl::Status check(const std::string& file) const;
  void work_as(uint64_t thread, uint64_t threads, int operations,
               std::vector<FlushedHistory::Flush>* flushes);
  void flush(std::vector<FlushedHistory::Flush>* flushes);
  void change_snapshots(std::mt19937_64* random);
  ByteRange draw_range(uint64_t thread, uint64_t threads, bool whole_clusters,
                       std::mt19937_64* random) const;
  std::vector<size_t> draw_moments(int count, std::mt19937_64* random) const;
  void judge_state(const std::string& file, const std::string& data,
                   size_t moment, PowerCutViolations* found) const;

  const PowerCutSetting& setting_;
  const uint64_t seed_;
  // One of them, for its first content and its backing file.
  std::unique_ptr<MemoryImage> image_;
  std::unique_ptr<DataImage> data_image_;
  FlushedHistory history_;
  std::string initial_;
  std::string initial_data_;
  const std::shared_ptr<LogClock> clock_ = std::make_shared<LogClock>(0);
  std::shared_ptr<LoggingDriver> file_;
  std::shared_ptr<LoggingDriver> data_;  // null: none
  std::shared_ptr<BlockDriver> driver_;
};

// SPINDLE_STATES, or how many states of the disk are looked at in all.
int power_cut_states();

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_CLUSTER_POWER_CUT_H_

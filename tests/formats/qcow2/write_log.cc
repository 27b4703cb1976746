#include "tests/formats/qcow2/write_log.h"

#include <algorithm>
#include <utility>

namespace spindle::testing {
namespace {

// How likely it is, in this state of the disk, that a sector arrives.
struct Luck {
  double write;   // of a write, that it arrives at all
  double sector;  // of a sector of a write that arrives
  double length;  // that the file is as long as a write made it

  static Luck draw(std::mt19937_64* random) {
    switch ((*random)() % 4) {
      case 0:  // nothing but what was flushed
        return {0, 0, 0.5};
      case 1:  // whole writes
        return {0.5, 1, 0.5};
      case 2:  // torn writes
        return {0.7, 0.6, 0.8};
      default:  // nearly all
        return {0.95, 0.98, 1};
    }
  }
};

void grow(std::string* file, uint64_t length) {
  if (file->size() < length) file->resize(length, '\0');
}

void put(const LogEntry& entry, ByteRange part, std::string* file) {
  grow(file, part.end());
  if (entry.kind == LogEntry::Kind::kWrite) {
    file->replace(part.offset, part.length, entry.bytes,
                  part.offset - entry.range.offset, part.length);
  } else {
    file->replace(part.offset, part.length, part.length, '\0');
  }
}

void apply(const LogEntry& entry, std::string* file) {
  if (entry.kind == LogEntry::Kind::kLength) grow(file, entry.length);
  if (!entry.range.empty()) put(entry, entry.range, file);
}

void apply_partly(const LogEntry& entry, const Luck& luck,
                  std::mt19937_64* random, std::string* file) {
  std::uniform_real_distribution<double> dice(0, 1);
  if (entry.kind == LogEntry::Kind::kLength) {
    if (dice(*random) < luck.length) grow(file, entry.length);
    return;
  }
  if (entry.range.empty()) return;
  if (dice(*random) < luck.write) {
    for (uint64_t at = entry.range.offset; at < entry.range.end();
         at += kSectorSizeBytes) {
      const ByteRange sector{
          at, std::min(kSectorSizeBytes, entry.range.end() - at)};
      if (dice(*random) < luck.sector) put(entry, sector, file);
    }
  }
  if (dice(*random) < luck.length) grow(file, entry.range.end());
}

}  // namespace

LoggingDriver::LoggingDriver(const std::string& content, HonestFlush honest,
                             std::shared_ptr<LogClock> clock)
    : honest_(std::move(honest)),
      clock_(clock != nullptr ? std::move(clock)
                              : std::make_shared<LogClock>(0)) {
  memory_.set_content(0, content);
}

void LoggingDriver::enter(LogEntry entry) {
  entry.moment = clock_->fetch_add(1);
  log_.push_back(std::move(entry));
}

absl::Status LoggingDriver::write(const IoVector& qiov, Sector sector) {
  std::string bytes(qiov.length_bytes(), '\0');
  qiov.copy_to(0, bytes.data(), bytes.size());
  const ByteRange range{sector.byte_offset(), bytes.size()};
  absl::MutexLock lock(&mutex_);
  enter({LogEntry::Kind::kWrite, range, std::move(bytes)});
  return memory_.write(qiov, sector);
}

absl::Status LoggingDriver::flush() {
  absl::MutexLock lock(&mutex_);
  enter({honest_(++flushes_) ? LogEntry::Kind::kFlush
                             : LogEntry::Kind::kIgnoredFlush});
  return absl::OkStatus();
}

absl::Status LoggingDriver::discard(ByteRange range) {
  absl::MutexLock lock(&mutex_);
  enter({LogEntry::Kind::kZeroes, range});
  return memory_.discard(range);
}

absl::Status LoggingDriver::write_zeroes(ByteRange range,
                                         WriteZeroesFlags flags) {
  absl::MutexLock lock(&mutex_);
  enter({LogEntry::Kind::kZeroes, range});
  return memory_.write_zeroes(range, flags);
}

absl::Status LoggingDriver::set_length(uint64_t length_bytes,
                                       SetLengthMode mode) {
  absl::MutexLock lock(&mutex_);
  enter({LogEntry::Kind::kLength, {}, {}, length_bytes});
  return memory_.set_length(length_bytes, mode);
}

size_t LoggingDriver::mark() {
  absl::MutexLock lock(&mutex_);
  enter({LogEntry::Kind::kMark});
  return log_.back().moment + 1;
}

std::vector<LogEntry> LoggingDriver::entries() const {
  absl::MutexLock lock(&mutex_);
  return log_;
}

std::string CutDisk::cut(size_t moment, std::mt19937_64* random) {
  size_t end = durable_until_;
  size_t last_flush = durable_until_;
  for (; end < log_.size() && log_[end].moment < moment; ++end) {
    if (log_[end].kind == LogEntry::Kind::kFlush) last_flush = end + 1;
  }
  for (; durable_until_ < last_flush; ++durable_until_) {
    apply(log_[durable_until_], &durable_);
  }
  std::string file = durable_;
  const Luck luck = Luck::draw(random);
  for (size_t i = durable_until_; i < end; ++i) {
    apply_partly(log_[i], luck, random, &file);
  }
  return file;
}

}  // namespace spindle::testing

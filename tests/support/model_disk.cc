#include "tests/support/model_disk.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace spindle::testing {
namespace {

uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

void stamp_content(uint64_t stamp, uint64_t offset, absl::Span<uint8_t> out) {
  const uint64_t key = mix(stamp * 0x9e3779b97f4a7c15u);
  // Every other stamp repeats each word: that can be compressed.
  const uint64_t repeated = stamp % 2 == 0 ? 64 : 8;
  size_t done = 0;
  while (done < out.size()) {
    const uint64_t position = offset + done;
    const uint64_t word = mix(key + position / repeated);
    const size_t skip = position % 8;
    const size_t bytes = std::min<size_t>(8 - skip, out.size() - done);
    std::memcpy(out.data() + done,
                reinterpret_cast<const uint8_t*>(&word) + skip, bytes);
    done += bytes;
  }
}

ModelDisk::ModelDisk(Options options)
    : options_(std::move(options)),
      initial_(std::make_shared<Change>(0, ByteRange{0, options_.length_bytes},
                                        true)),
      length_(options_.length_bytes) {
  initial_->complete = 1;
}

ModelDisk::~ModelDisk() = default;

ModelDisk::Value ModelDisk::initial_value() const {
  return {.change = initial_,
          .source = options_.initial ? Source::kInitial : Source::kZero,
          .first = 0,
          .last = kSectorSizeBytes};
}

uint64_t ModelDisk::horizon() {
  absl::MutexLock lock(&reads_mutex_);
  return reads_.empty() ? clock_.load() : *reads_.begin();
}

ModelDisk::ChangeRef ModelDisk::begin_write(ByteRange range) {
  return begin(Source::kStamp, range);
}
ModelDisk::ChangeRef ModelDisk::begin_write_zeroes(ByteRange range) {
  return begin(Source::kZero, range);
}
ModelDisk::ChangeRef ModelDisk::begin_discard(ByteRange range) {
  return begin(Source::kBacking, range);
}

ModelDisk::ChangeRef ModelDisk::begin(Source source, ByteRange range) {
  auto change =
      std::make_shared<Change>(source == Source::kStamp ? next_stamp_++ : 0,
                               range, source != Source::kBacking);
  enter(change);
  return change;
}

ModelDisk::ChangeRef ModelDisk::begin_replacement(
    std::shared_ptr<const std::vector<uint8_t>> content) {
  const ByteRange range{0, content->size()};
  auto change =
      std::make_shared<Change>(0, range, /*definite=*/true, std::move(content));
  enter(change);
  return change;
}

void ModelDisk::enter(const ChangeRef& change) {
  const ByteRange range = change->range;
  change->submit = tick();
  const uint64_t oldest_read = horizon();
  for (uint64_t offset = range.offset; offset < range.end();) {
    const uint64_t run_end =
        std::min(range.end(), (offset / kSectorSizeBytes / kSectorsPerRun + 1) *
                                  kSectorsPerRun * kSectorSizeBytes);
    Shard& shard = shard_of(offset / kSectorSizeBytes);
    absl::MutexLock lock(&shard.mutex);
    while (offset < run_end) {
      const uint64_t sector = offset / kSectorSizeBytes;
      const auto first = static_cast<uint16_t>(offset % kSectorSizeBytes);
      const auto last = static_cast<uint16_t>(
          std::min(range.end() - sector * kSectorSizeBytes, kSectorSizeBytes));
      add_values(change, &shard.sectors[sector], first, last, oldest_read);
      offset = (sector + 1) * kSectorSizeBytes;
    }
  }
}

void ModelDisk::add_values(const ChangeRef& change, std::vector<Value>* values,
                           uint16_t first, uint16_t last, uint64_t horizon) {
  if (values->empty()) values->push_back(initial_value());
  forget_replaced(values, horizon);
  Value value{.change = change,
              .source = change->content != nullptr ? Source::kGiven
                        : change->stamp != 0       ? Source::kStamp
                                                   : Source::kZero,
              .first = first,
              .last = last};
  values->push_back(value);
  if (!change->definite && options_.backing) {
    value.source = Source::kBacking;
    values->push_back(value);
  }
}

void ModelDisk::fill(const Change& change, const IoVector& memory) {
  uint64_t offset = change.range.offset;
  for (size_t i = 0; i < memory.segment_count(); ++i) {
    const iovec segment = memory.segment(i);
    stamp_content(change.stamp, offset,
                  absl::MakeSpan(static_cast<uint8_t*>(segment.iov_base),
                                 segment.iov_len));
    offset += segment.iov_len;
  }
}

void ModelDisk::end(const ChangeRef& change, Outcome outcome) {
  change->outcome = outcome;
  change->complete = tick();
}

bool ModelDisk::replaces(const Value& later, const Value& earlier,
                         uint64_t time) {
  const Change& by = *later.change;
  const uint64_t ended = by.complete;
  if (!by.definite || ended == 0 || ended >= time ||
      by.outcome != Outcome::kDone)
    return false;
  const uint64_t earlier_ended = earlier.change->complete;
  return earlier_ended != 0 && earlier_ended < by.submit;
}

ModelDisk::ByteSet ModelDisk::replaced_bytes(const std::vector<Value>& values,
                                             const Value& value,
                                             uint64_t time) {
  ByteSet replaced{};
  for (const Value& later : values) {
    if (!replaces(later, value, time)) continue;
    std::fill(replaced.begin() + later.first, replaced.begin() + later.last,
              true);
  }
  return replaced;
}

void ModelDisk::forget_replaced(std::vector<Value>* values, uint64_t horizon) {
  const auto is_gone = [&](const Value& value) {
    const Change& change = *value.change;
    if (change.complete != 0 && change.outcome == Outcome::kWithdrawn)
      return true;
    if (value.ruled_out != 0 && value.ruled_out < horizon) return true;
    // The parts that were replaced, one after the other from the front.
    size_t covered = value.first;
    for (bool grew = true; grew && covered < value.last;) {
      grew = false;
      for (const Value& later : *values) {
        if (later.first <= covered && covered < later.last &&
            replaces(later, value, horizon)) {
          covered = later.last;
          grew = true;
        }
      }
    }
    return covered >= value.last;
  };
  // Judged as a whole before anything goes, since each judgement needs the
  // rest.
  std::vector<bool> gone(values->size());
  for (size_t i = 0; i < values->size(); ++i) gone[i] = is_gone((*values)[i]);
  size_t kept = 0;
  for (size_t i = 0; i < values->size(); ++i) {
    if (gone[i]) continue;
    if (kept != i) (*values)[kept] = std::move((*values)[i]);
    ++kept;
  }
  values->resize(kept);
}

ModelDisk::Read ModelDisk::begin_read(ByteRange range) {
  absl::MutexLock lock(&reads_mutex_);
  Read read{.range = range, .submit = tick()};
  reads_.insert(read.submit);
  return read;
}

void ModelDisk::drop_read(const Read& read) {
  absl::MutexLock lock(&reads_mutex_);
  reads_.erase(reads_.find(read.submit));
}

std::optional<ModelDisk::Mismatch> ModelDisk::end_read(
    const Read& read, absl::Span<const uint8_t> data) {
  const uint64_t now = tick();
  std::optional<Mismatch> mismatch;
  for (uint64_t offset = read.range.offset;
       offset < read.range.end() && !mismatch;) {
    const uint64_t sector = offset / kSectorSizeBytes;
    const uint64_t end =
        std::min(read.range.end(), (sector + 1) * kSectorSizeBytes);
    Shard& shard = shard_of(sector);
    absl::MutexLock lock(&shard.mutex);
    const auto found = shard.sectors.find(sector);
    std::vector<Value> untouched;
    if (found == shard.sectors.end()) untouched.push_back(initial_value());
    mismatch = judge_sector(
        read, sector, offset % kSectorSizeBytes,
        data.subspan(offset - read.range.offset, end - offset), now,
        found == shard.sectors.end() ? &untouched : &found->second);
    offset = end;
  }
  drop_read(read);
  return mismatch;
}

void ModelDisk::content_of(const Value& value, uint64_t sector,
                           SectorBytes* out) const {
  const uint64_t offset = sector * kSectorSizeBytes;
  switch (value.source) {
    case Source::kInitial:
      return options_.initial(offset, absl::MakeSpan(*out));
    case Source::kBacking:
      return options_.backing(offset, absl::MakeSpan(*out));
    case Source::kStamp:
      return stamp_content(value.change->stamp, offset, absl::MakeSpan(*out));
    case Source::kZero:
      return out->fill(0);
    case Source::kGiven: {
      const std::vector<uint8_t>& bytes = *value.change->content;
      out->fill(0);
      const size_t length =
          std::min<size_t>(out->size(), bytes.size() - offset);
      std::memcpy(out->data(), bytes.data() + offset, length);
      return;
    }
  }
}

std::optional<ModelDisk::Mismatch> ModelDisk::judge_sector(
    const Read& read, uint64_t sector, size_t first,
    absl::Span<const uint8_t> data, uint64_t now, std::vector<Value>* values) {
  ByteSet explained{};
  size_t left = data.size();
  // Newest first: the usual case ends with the first value.
  for (auto value = values->rbegin(); value != values->rend() && left > 0;
       ++value) {
    if (value->change->submit > now) continue;
    if (value->ruled_out != 0 && value->ruled_out < read.submit) continue;
    const uint64_t ended = value->change->complete;
    if (ended != 0 && value->change->outcome == Outcome::kWithdrawn) continue;
    SectorBytes content;
    content_of(*value, sector, &content);
    const size_t begin = std::max<size_t>(first, value->first);
    const size_t end = std::min<size_t>(first + data.size(), value->last);
    std::optional<ByteSet> replaced;
    for (size_t byte = begin; byte < end; ++byte) {
      if (explained[byte] || content[byte] != data[byte - first]) continue;
      if (!replaced.has_value())
        replaced = replaced_bytes(*values, *value, read.submit);
      if ((*replaced)[byte]) continue;
      explained[byte] = true;
      --left;
    }
  }
  if (left > 0) {
    size_t byte = first;
    while (explained[byte]) ++byte;
    return Mismatch{.offset = sector * kSectorSizeBytes + byte,
                    .found = data[byte - first],
                    .explanation = explain(*values, sector, byte, read.submit)};
  }
  if (data.size() == kSectorSizeBytes && is_ambiguous(*values)) {
    rule_out(read, sector, data, now, values);
  }
  return std::nullopt;
}

bool ModelDisk::is_ambiguous(const std::vector<Value>& values) {
  size_t bytes = 0;
  for (const Value& value : values) {
    if (value.ruled_out == 0) bytes += value.last - value.first;
  }
  return bytes > kSectorSizeBytes;
}

void ModelDisk::rule_out(const Read& read, uint64_t sector,
                         absl::Span<const uint8_t> data, uint64_t now,
                         std::vector<Value>* values) const {
  for (const Value& value : *values) {
    const uint64_t ended = value.change->complete;
    if (ended == 0 || ended > read.submit) return;  // not quiet during the read
  }
  std::vector<ByteSet> matches(values->size());
  for (size_t i = 0; i < values->size(); ++i) {
    matches[i] =
        matching_bytes((*values)[i], *values, sector, data, read.submit);
  }
  // From now on each byte has the one value that was seen.  Bytes of different
  // stamps are equal by chance now and then, so runs are as long as can be.
  std::vector<Value> runs;
  for (size_t byte = 0; byte < kSectorSizeBytes;) {
    size_t best = 0, best_end = byte;
    for (size_t i = 0; i < values->size(); ++i) {
      size_t end = byte;
      while (end < kSectorSizeBytes && matches[i][end]) ++end;
      if (end > best_end) best = i, best_end = end;
    }
    // Another read has ruled this out, but only after this one was submitted.
    if (best_end == byte) return;
    runs.push_back((*values)[best]);
    runs.back().first = static_cast<uint16_t>(byte);
    runs.back().last = static_cast<uint16_t>(best_end);
    byte = best_end;
  }
  for (Value& value : *values) {
    if (value.ruled_out == 0) value.ruled_out = now;
  }
  values->insert(values->end(), runs.begin(), runs.end());
}

ModelDisk::ByteSet ModelDisk::matching_bytes(const Value& value,
                                             const std::vector<Value>& values,
                                             uint64_t sector,
                                             absl::Span<const uint8_t> data,
                                             uint64_t time) const {
  ByteSet matches{};
  if (value.ruled_out != 0 || value.change->outcome == Outcome::kWithdrawn)
    return matches;
  SectorBytes content;
  content_of(value, sector, &content);
  const ByteSet replaced = replaced_bytes(values, value, time);
  for (size_t byte = value.first; byte < value.last; ++byte)
    matches[byte] = content[byte] == data[byte] && !replaced[byte];
  return matches;
}

std::string ModelDisk::explain(const std::vector<Value>& values,
                               uint64_t sector, size_t byte,
                               uint64_t time) const {
  std::string text;
  for (const Value& value : values) {
    if (byte < value.first || byte >= value.last) continue;
    SectorBytes content;
    content_of(value, sector, &content);
    static constexpr const char* kNames[] = {"initial", "write", "zeroes",
                                             "backing", "snapshot"};
    absl::StrAppend(
        &text, text.empty() ? "" : "; ", kNames[static_cast<int>(value.source)],
        " #", value.change->stamp, " of [", value.change->range.offset, ", ",
        value.change->range.end(), ") during [", value.change->submit, ", ",
        value.change->complete.load(), "] gives ", content[byte],
        replaced_bytes(values, value, time)[byte] ? ", replaced" : "",
        value.ruled_out != 0 && value.ruled_out < time ? ", ruled out" : "",
        value.change->outcome == Outcome::kDone ? "" : ", not done");
  }
  return absl::StrCat("read submitted at ", time, "; ", text);
}

size_t ModelDisk::value_count() const {
  size_t count = 0;
  for (const Shard& shard : shards_) {
    absl::MutexLock lock(&shard.mutex);
    for (const auto& [sector, values] : shard.sectors) count += values.size();
  }
  return count;
}

}  // namespace spindle::testing

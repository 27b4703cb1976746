#include "tools/io_request.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "absl/time/clock.h"
#include "engine/sector.h"
#include "tools/io_text.h"

namespace spindle {

IoRequest::IoRequest(IoImage& image, const IoFlags& flags, uint64_t offset,
                     const std::vector<uint64_t>& lengths, uint8_t fill)
    : image_(image),
      flags_(flags),
      offset_(offset),
      lengths_(lengths),
      length_bytes_(
          std::accumulate(lengths.begin(), lengths.end(), uint64_t{0})),
      buffer_(flags.zeroes || (!flags.vmstate &&
                               image.is_outside(offset, length_bytes_))
                  ? 0
                  : length_bytes_,
              image.target().misaligned_buffers, fill),
      start_(absl::Now()) {
  if (flags.vmstate) return;
  // Behind the end of the image, in its last sector, there are zeroes.
  const uint64_t end = image.device().length_bytes();
  const auto bytes = buffer_.bytes();
  const uint64_t there = end - std::min(end, offset);
  if (there < bytes.size()) {
    std::fill(bytes.begin() + static_cast<ptrdiff_t>(there), bytes.end(),
              uint8_t{0});
  }
}

absl::Status IoRequest::check_range() const {
  return image_.is_outside(offset_, length_bytes_)
             ? absl::OutOfRangeError("beyond the end of the image")
             : absl::OkStatus();
}

IoVector IoRequest::qiov() {
  std::vector<iovec> segments;
  uint8_t* next = buffer_.data();
  for (const uint64_t length : lengths_) {
    segments.push_back({next, length});
    // Outside of the image there is no buffer, and the device refuses.
    if (next != nullptr) next += length;
  }
  return flags_.vmstate ? IoVector(segments)
                        : image_.inside(IoVector(segments), offset_);
}

ByteRange IoRequest::range() const {
  const uint64_t end = image_.device().length_bytes();
  return {offset_, std::min(length_bytes_, end - std::min(end, offset_))};
}

// That discards are ignored does not matter here, nor does it to QEMU.
WriteZeroesFlags IoRequest::zeroes_flags() const {
  return {.may_unmap = flags_.may_unmap, .no_fallback = flags_.no_fallback};
}

bool IoRequest::verify(uint64_t from, uint64_t count) {
  const auto part = bytes().subspan(from, count);
  if (std::all_of(part.begin(), part.end(),
                  [&](uint8_t byte) { return byte == *flags_.pattern; })) {
    return true;
  }
  std::printf("Pattern verification failed at offset %llu, %llu bytes\n",
              static_cast<unsigned long long>(offset_ + from),
              static_cast<unsigned long long>(count));
  return false;
}

void IoRequest::report(const char* verb) {
  // A clock may stand still.
  const absl::Duration elapsed =
      std::max(absl::Now() - start_, absl::Nanoseconds(1));
  if (flags_.quiet) return;
  if (flags_.verbose) print_dump(bytes(), offset_);
  print_report({.verb = verb,
                .offset = offset_,
                .bytes = length_bytes_,
                .elapsed = elapsed,
                .machine_readable = flags_.machine_readable});
}

std::optional<std::vector<uint64_t>> read_lengths(const IoCall& call,
                                                  int first) {
  constexpr auto kMax = static_cast<unsigned long long>(kMaxIoBytes);
  std::vector<uint64_t> lengths;
  uint64_t total = 0;
  for (int i = first; i < call.argc; ++i) {
    const std::optional<uint64_t> length = read_number(call.argv[i]);
    if (!length.has_value()) return std::nullopt;
    if (*length > kMaxIoBytes) {
      std::printf("Argument '%s' exceeds maximum size %llu\n", call.argv[i],
                  kMax);
      return std::nullopt;
    }
    if (total > kMaxIoBytes - *length) {
      std::printf("The total number of bytes exceed the maximum size %llu\n",
                  kMax);
      return std::nullopt;
    }
    total += *length;
    lengths.push_back(*length);
  }
  return lengths;
}

IoOutcome report_failure(const char* what, const absl::Status& status) {
  std::printf("%s failed: %s\n", what, failure_text(status).c_str());
  return IoOutcome::kFailed;
}

}  // namespace spindle

#include "tests/stress/counts.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace spindle::testing {

uint64_t Counts::least() const {
  uint64_t least = cancels_;
  for (const auto& row : counts_) {
    least = std::min({least, row[0].load(), row[1].load() + row[2].load()});
  }
  return least;
}

void Counts::add(const Counts& other) {
  for (size_t i = 0; i < kOperationCount; ++i) {
    for (size_t j = 0; j < kModeCount; ++j)
      counts_[i][j] += other.counts_[i][j];
  }
  cancels_ += other.cancels_;
  withdrawn_ += other.withdrawn_;
  refused_ += other.refused_;
}

std::string Counts::to_string() const {
  static constexpr const char* kNames[kOperationCount] = {
      "read",    "write",        "pread", "pwrite",
      "discard", "write-zeroes", "flush", "compressed"};
  std::string text = absl::StrFormat("  %-14s%12s%12s%12s\n", "operation",
                                     "synchronous", "callback", "queue");
  for (size_t i = 0; i < kOperationCount; ++i) {
    absl::StrAppendFormat(&text, "  %-14s%12d%12d%12d\n", kNames[i],
                          counts_[i][0].load(), counts_[i][1].load(),
                          counts_[i][2].load());
  }
  absl::StrAppendFormat(&text, "  %-14s%12d, of which %d were withdrawn\n",
                        "cancel", cancels_.load(), withdrawn_.load());
  absl::StrAppendFormat(&text, "  %-14s%12d\n", "out of range",
                        refused_.load());
  return text;
}

}  // namespace spindle::testing

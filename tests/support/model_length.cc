#include "tests/support/model_length.h"

#include "absl/base/macros.h"

namespace spindle::testing {

uint64_t ModelLength::newest() const {
  absl::MutexLock lock(&mutex_);
  return entries_.back().length_bytes;
}

void ModelLength::begin(uint64_t length_bytes) {
  absl::MutexLock lock(&mutex_);
  ABSL_ASSERT(entries_.back().ended != kNever);
  entries_.push_back(
      {.length_bytes = length_bytes, .begun = now(), .ended = kNever});
}

void ModelLength::end(bool done) {
  absl::MutexLock lock(&mutex_);
  ABSL_ASSERT(entries_.back().ended == kNever);
  if (done) {
    entries_.back().ended = now();
  } else {
    entries_.pop_back();
  }
}

std::vector<uint64_t> ModelLength::possible(uint64_t from, uint64_t to) const {
  absl::MutexLock lock(&mutex_);
  std::vector<uint64_t> lengths;
  for (size_t i = entries_.size(); i-- > 0;) {
    if (entries_[i].begun > to) continue;
    lengths.push_back(entries_[i].length_bytes);
    // What came before it had gone.
    if (entries_[i].ended < from) break;
  }
  return lengths;
}

}  // namespace spindle::testing

#include "formats/cluster/corruption.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace spindle {

Corruption::Corruption(absl::string_view format_name, Mark mark, LogSink log)
    : format_name_(format_name), mark_(std::move(mark)), log_(std::move(log)) {}

absl::Status Corruption::report(absl::string_view reason) {
  bool first = false;
  {
    absl::MutexLock lock(&mutex_);
    if (reason_.empty()) {
      reason_ = std::string(reason);
      first = true;
    }
  }
  corrupt_.store(true, std::memory_order_release);
  if (first && log_) {
    log_(LogSeverity::kError,
         absl::StrCat(format_name_, ": ", reason,
                      "; the image is corrupt, further writes are refused"));
  }
  if (first && mark_) {
    const absl::Status marked = mark_();
    if (!marked.ok() && log_) {
      log_(LogSeverity::kError,
           absl::StrCat(format_name_, ": the corrupt bit could not be set: ",
                        marked.message()));
    }
  }
  return absl::DataLossError(reason);
}

absl::Status Corruption::refusal() const {
  absl::MutexLock lock(&mutex_);
  return absl::DataLossError(absl::StrCat(
      "the image was found to be corrupt and refuses writes: ", reason_));
}

}  // namespace spindle

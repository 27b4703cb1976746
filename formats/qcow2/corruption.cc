#include "formats/qcow2/corruption.h"

#include <array>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {

Corruption::Corruption(ByteChannel* file, bool header_has_bit,
                       uint64_t incompatible_features, LogSink log)
    : file_(file),
      header_has_bit_(header_has_bit),
      incompatible_features_(incompatible_features),
      log_(std::move(log)) {}

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
         absl::StrCat("qcow2: ", reason,
                      "; the image is corrupt, further writes are refused"));
  }
  if (first && header_has_bit_ &&
      may_update_header_.load(std::memory_order_acquire) &&
      !file_->child().read_only()) {
    std::array<uint8_t, 8> features;
    store_big64(features.data(), incompatible_features_ | kIncompatibleCorrupt);
    const absl::Status written =
        file_->write(Purpose::kHeaderUpdate, features.data(), features.size(),
                     kIncompatibleFeaturesOffset);
    if (!written.ok() && log_) {
      log_(LogSeverity::kError,
           absl::StrCat("qcow2: the corrupt bit could not be set: ",
                        written.message()));
    }
  }
  return absl::DataLossError(reason);
}

absl::Status Corruption::refusal() const {
  absl::MutexLock lock(&mutex_);
  return absl::DataLossError(absl::StrCat(
      "the image was found to be corrupt and refuses writes: ", reason_));
}

}  // namespace spindle::qcow2

#include "formats/qcow2/corrupt_bit.h"

#include <array>

#include "engine/byte_order.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {

absl::Status CorruptBit::set() {
  if (!header_has_bit_ || !is_allowed_.load(std::memory_order_acquire) ||
      file_->child().read_only()) {
    return absl::OkStatus();
  }
  std::array<uint8_t, 8> features;
  store_big64(features.data(), incompatible_features_ | kIncompatibleCorrupt);
  return file_->write(Purpose::kHeaderUpdate, features.data(), features.size(),
                      kIncompatibleFeaturesOffset);
}

}  // namespace spindle::qcow2

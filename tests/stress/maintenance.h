// Maintenance: what is done to an image while it is in use: snapshots and
// bitmaps come and go, and a bitmap that was there all the time knows every
// change.
//
// Thread safety: one thread; requests to the device from any others.
#ifndef SPINDLE_TESTS_STRESS_MAINTENANCE_H_
#define SPINDLE_TESTS_STRESS_MAINTENANCE_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/block_device.h"

namespace spindle::testing {

class Maintenance {
 public:
  // `content`: what the disk holds now.  The device must outlive this.
  Maintenance(BlockDevice* device, uint64_t seed, std::vector<uint8_t> content);

  // Begins to follow changes.  REQUIRES: no request is in flight.
  absl::Status start();
  // Does one thing.
  absl::Status step();
  // Whether the image is sound, and every change was noticed.
  // REQUIRES: no request is in flight; the disk holds `content`.
  absl::Status judge(const std::vector<uint8_t>& content);

  // How many snapshots were made, and how many steps changed a bitmap.
  uint64_t snapshots() const { return snapshots_; }
  uint64_t bitmap_changes() const { return bitmap_changes_; }

 private:
  bool has(Capability capability) const {
    return device_->driver().capabilities().has(capability);
  }
  absl::Status change_snapshots();
  absl::Status change_bitmaps();

  BlockDevice* const device_;
  std::mt19937_64 random_;
  const std::vector<uint8_t> before_;
  bool follows_ = false;
  uint64_t snapshots_ = 0;
  uint64_t bitmap_changes_ = 0;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_STRESS_MAINTENANCE_H_

// Maintenance: what is done to an image while it is in use: snapshots and
// bitmaps come and go, snapshots are applied, the disk becomes longer and
// shorter, checks and repairs run; and a bitmap that was there all the time
// knows every change.
//
// Where there are bitmaps no snapshot can be applied, so half of all images
// have none.
//
// Thread safety: one thread; requests to the device from any others.
#ifndef SPINDLE_TESTS_STRESS_MAINTENANCE_H_
#define SPINDLE_TESTS_STRESS_MAINTENANCE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_device.h"
#include "tests/stress/workload.h"
#include "tests/support/model_disk.h"

namespace spindle::testing {

struct MaintenanceOptions {
  uint64_t seed = 0;
  // Between these the disk's length changes; the same: it does not.
  uint64_t shortest_bytes = 0;
  uint64_t longest_bytes = 0;
  // Lengths are multiples of this.
  uint64_t length_unit_bytes = 1;
  bool has_bitmaps = true;
  // A format may be checked, but never repaired.
  bool has_repair = true;
};

class Maintenance {
 public:
  using Content = std::vector<uint8_t>;

  // `read_all`: reads and judges the whole disk.  All must outlive this.
  Maintenance(BlockDevice* device, ModelDisk* model,
              std::function<absl::StatusOr<Content>()> read_all,
              MaintenanceOptions options);

  // Begins to follow changes from `content` on.
  // REQUIRES: no request is in flight; the disk holds `content`.
  absl::Status start(Content content);
  // Does one thing.
  absl::Status step(Workload* workload);
  // Whether the image is sound, and every change was noticed.
  // REQUIRES: no request is in flight; the disk holds `content`.
  absl::Status judge(const Content& content);

  // How many of each were done.
  struct Done {
    uint64_t snapshots = 0;
    uint64_t applied = 0;
    uint64_t bitmap_changes = 0;
    uint64_t grown = 0;
    uint64_t shrunk = 0;
    uint64_t checks = 0;
    std::string to_string() const;
  };
  const Done& done() const { return done_; }

 private:
  bool has(Capability capability) const {
    return device_->driver().capabilities().has(capability);
  }
  absl::Status remove_bitmaps();
  absl::Status change_snapshots(Workload* workload);
  // Beside requests nobody can tell what it has; alone, it can be applied.
  absl::Status create_snapshot();
  absl::Status create_known_snapshot();
  absl::Status apply_snapshot(const std::string& id);
  absl::Status change_bitmaps();
  absl::Status change_length();
  absl::Status check_soundness(bool repair);
  uint64_t choose_length();

  BlockDevice* const device_;
  ModelDisk* const model_;
  const std::function<absl::StatusOr<Content>()> read_all_;
  const MaintenanceOptions options_;
  std::mt19937_64 random_;
  Content before_;
  // The shortest that the disk was since start(): behind that, bits went with
  // the disk.
  uint64_t kept_bytes_ = 0;
  bool follows_ = false;
  // What the snapshots have of which that is known, by id.
  std::map<std::string, std::shared_ptr<const Content>> known_;
  Done done_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_STRESS_MAINTENANCE_H_

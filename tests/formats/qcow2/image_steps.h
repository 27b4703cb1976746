// Steps in the life of an image, done by Spindle or by QEMU: for tests that
// lead two images through one history and compare them.
//
// Every step opens the image and closes it.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TESTS_FORMATS_QCOW2_IMAGE_STEPS_H_
#define SPINDLE_TESTS_FORMATS_QCOW2_IMAGE_STEPS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "engine/block_driver.h"

namespace spindle::testing {

struct Step {
  enum class Kind {
    kWrite,
    kZero,
    kDiscard,
    kCreate,
    kApply,
    kDelete,
    kResize
  };
  Kind kind;
  uint64_t offset = 0;
  uint64_t length = 0;  // kResize: of the disk
  uint8_t fill = 0;
  std::string snapshot = {};
  Preallocation preallocation = Preallocation::kOff;

  std::string text() const;
};

// By us, with reuse=lowest: clusters go where QEMU puts them.
absl::Status step_by_us(const std::string& path, const Step& step);
absl::Status step_by_qemu(const std::string& path, const Step& step);

// "id name" of each snapshot, as qemu-img and as Spindle list them.
std::string listed_by_qemu(const std::string& path);
std::string listed_by_us(const std::string& path);

// The content of the disk, or of a snapshot, as QEMU reads it.
std::string content_by_qemu(const std::string& path,
                            const std::string& snapshot = "");

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW2_IMAGE_STEPS_H_

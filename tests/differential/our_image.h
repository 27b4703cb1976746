// Opening an image with our own drivers, for tests that compare us with others.
//
// Thread safety: functions; a device as a device.
#ifndef SPINDLE_TESTS_DIFFERENTIAL_OUR_IMAGE_H_
#define SPINDLE_TESTS_DIFFERENTIAL_OUR_IMAGE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_device.h"
#include "engine/format.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {

// An executor that all tests of the process share.
Executor* shared_executor();

// Makes a new image, as its format and `options` say.
absl::Status create_ours(const ImageFile& image, CreateOptions options);

absl::StatusOr<std::unique_ptr<BlockDevice>> open_ours(
    const ImageFile& image, bool read_only,
    const OptionMap& driver_options = {});

// The whole content, in pieces of changing lengths.
absl::StatusOr<std::vector<uint8_t>> read_everything(BlockDevice& device);

// What the other implementation reads there (qemu-img convert).
absl::StatusOr<std::vector<uint8_t>> qemu_content(const ImageFile& image);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DIFFERENTIAL_OUR_IMAGE_H_

// OpenImage: the parts of an open qcow2 image, without the driver around them,
// over a file in memory that other tools made and judge.
//
// Thread safety: as the parts; making and judging one thread.
#ifndef SPINDLE_TESTS_FORMATS_QCOW2_OPEN_IMAGE_H_
#define SPINDLE_TESTS_FORMATS_QCOW2_OPEN_IMAGE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/format.h"
#include "formats/qcow2/image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::testing {

// The bytes of an image that qemu-img makes with `options` (as after -o) and
// qemu-io changes with `commands`.  Ends the process if they fail.
std::string qemu_image_bytes(uint64_t size_bytes, const std::string& options,
                             const std::vector<std::string>& commands = {});

// Big-endian numbers within an image's bytes.
uint64_t get_big64(const std::string& bytes, uint64_t offset);
void set_big64(std::string* bytes, uint64_t offset, uint64_t value);

struct OpenImage {
  // Opens for writing.  Ends the process if that fails.
  explicit OpenImage(const std::string& bytes, const OptionMap& options = {},
                     MemoryDriver::Options file_options = {});

  // The refcount of a cluster; ends the process on an error.
  uint64_t refcount(uint64_t cluster);

  const std::shared_ptr<MemoryDriver> memory;
  const std::shared_ptr<ObservingDriver> file;
  std::unique_ptr<qcow2::Image> image;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW2_OPEN_IMAGE_H_

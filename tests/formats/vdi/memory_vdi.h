// A VDI image in memory, made and opened by our own code.
//
// Thread safety: as the drivers.
#ifndef SPINDLE_TESTS_FORMATS_VDI_MEMORY_VDI_H_
#define SPINDLE_TESTS_FORMATS_VDI_MEMORY_VDI_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_check.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::testing {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;
// Where the blocks of a small image begin.
inline constexpr uint64_t kFirstBlock = 1024;

// The bytes of a new image.
std::string new_vdi(uint64_t disk_bytes, bool is_static = false);

struct MemoryVdi {
  explicit MemoryVdi(absl::string_view content,
                     MemoryDriver::Options memory_options = {});
  // Opens, or opens anew, what `memory` holds.
  absl::Status open(const OpenOptions& options = {});

  const std::shared_ptr<MemoryDriver> memory;
  const std::shared_ptr<ObservingDriver> file;
  std::shared_ptr<BlockDriver> driver;
};

absl::Status write_fill(BlockDriver& driver, ByteRange range, char value);
// What is there, or the error as text.
std::string read_range(BlockDriver& driver, ByteRange range);
// What a check finds in the bytes of an image.
absl::StatusOr<CheckResult> check_bytes(absl::string_view content);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_VDI_MEMORY_VDI_H_

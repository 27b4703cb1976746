// Fuzzes a VDI image: what is done to it, then the file.
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "formats/vdi/vdi_format.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/simple_format.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using spindle::testing::kProgramBytes;
  if (size < kProgramBytes) return 0;
  const spindle::testing::SimpleFormat vdi{spindle::vdi::vdi_format()};
  spindle::testing::exercise_simple_format(
      vdi, absl::MakeConstSpan(data, kProgramBytes),
      {reinterpret_cast<const char*>(data) + kProgramBytes,
       size - kProgramBytes});
  return 0;
}

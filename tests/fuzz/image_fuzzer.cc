// Fuzzes a whole image: what is done to it, then the file.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tests/fuzz/exercise.h"

using spindle::testing::kProgramBytes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kProgramBytes) return 0;
  spindle::testing::exercise_image(
      {reinterpret_cast<const char*>(data) + kProgramBytes,
       size - kProgramBytes},
      absl::MakeConstSpan(data, kProgramBytes));
  return 0;
}

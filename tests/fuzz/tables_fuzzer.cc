// Fuzzes the tables of an image whose header is sound: its first clusters
// behind the header (refcount table, refcount block, L1 and L2 tables) are the
// input, as far as that reaches.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/types/span.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/template_image.h"

namespace spindle::testing {
namespace {

void fuzz(absl::Span<const uint8_t> program, absl::Span<const uint8_t> tables) {
  std::string file = template_image().file;
  const size_t bytes =
      std::min(tables.size(), file.size() - kTemplateClusterBytes);
  if (bytes != 0)
    std::memcpy(&file[kTemplateClusterBytes], tables.data(), bytes);
  exercise_image(file, program);
}

}  // namespace
}  // namespace spindle::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using spindle::testing::kProgramBytes;
  if (size < kProgramBytes) return 0;
  const absl::Span<const uint8_t> input(data, size);
  spindle::testing::fuzz(input.first(kProgramBytes),
                         input.subspan(kProgramBytes));
  return 0;
}

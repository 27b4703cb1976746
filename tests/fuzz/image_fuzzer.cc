// Fuzzes a whole image: what is done to it, then the file.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/byte_order.h"
#include "formats/qcow2/layout.h"
#include "tests/fuzz/exercise.h"

using spindle::testing::kProgramBytes;

namespace {

// A table of tens of thousands of snapshots keeps each check busy for a second:
// a few such inputs would be all that there is time for.  What their number may
// be, the header's fuzzer and the tests of the header try.
constexpr uint32_t kMostSnapshots = 256;

bool has_too_many_snapshots(absl::Span<const uint8_t> image) {
  constexpr size_t kOffset = spindle::qcow2::kSnapshotCountOffset;
  return image.size() >= kOffset + sizeof(uint32_t) &&
         spindle::load_big32(&image[kOffset]) > kMostSnapshots;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kProgramBytes) return 0;
  if (has_too_many_snapshots({data + kProgramBytes, size - kProgramBytes}))
    return -1;  // not for the corpus
  spindle::testing::exercise_image(
      {reinterpret_cast<const char*>(data) + kProgramBytes,
       size - kProgramBytes},
      absl::MakeConstSpan(data, kProgramBytes));
  return 0;
}

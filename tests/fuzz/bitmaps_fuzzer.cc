// Fuzzes persistent bitmaps: an image that is sound otherwise has a directory
// of bitmaps, which is the input, behind what is done and their number; it may
// name itself as tables and bits.
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/template_image.h"

namespace spindle::testing {
namespace {

void fuzz(absl::Span<const uint8_t> program, uint8_t count,
          absl::Span<const uint8_t> directory) {
  const TemplateImage& image = template_image();
  const uint64_t offset = align_up(image.file.size(), kTemplateClusterBytes);
  qcow2::HeaderExtension extension;
  extension.type = qcow2::kExtensionBitmaps;
  extension.data.resize(qcow2::kBitmapsExtensionBytes);
  auto* const to = reinterpret_cast<uint8_t*>(extension.data.data());
  store_big32(to + qcow2::kBitmapsCountOffset, count);
  store_big64(to + qcow2::kBitmapsDirectorySizeOffset, directory.size());
  store_big64(to + qcow2::kBitmapsDirectoryOffsetOffset, offset);
  qcow2::Header header = image.header;
  header.extensions = {extension};  // in so small a cluster nothing else fits
  header.autoclear_features |= qcow2::kAutoclearBitmaps;
  std::string file = with_header(image, header);
  file.resize(offset);
  file.append(reinterpret_cast<const char*>(directory.data()),
              directory.size());
  exercise_image(file, program);
}

}  // namespace
}  // namespace spindle::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using spindle::testing::kProgramBytes;
  if (size < kProgramBytes + 1) return 0;
  const absl::Span<const uint8_t> input(data, size);
  spindle::testing::fuzz(input.first(kProgramBytes), input[kProgramBytes],
                         input.subspan(kProgramBytes + 1));
  return 0;
}

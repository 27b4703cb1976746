// Fuzzes compressed clusters.  The first byte: the compression type and the
// cluster size; the rest is a stream, and data to be compressed.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "formats/cluster/compressor.h"
#include "formats/cluster/inflate.h"
#include "tests/fuzz/exercise.h"

namespace spindle::testing {
namespace {

void fuzz(uint8_t choice, absl::Span<const uint8_t> input) {
  const auto type =
      choice % 2 == 0 ? CompressionType::kZlib : CompressionType::kZstd;
  const size_t cluster_bytes = size_t{512} << (choice / 2 % 8);
  std::vector<uint8_t> cluster(cluster_bytes);
  inflate_cluster(type, input, absl::MakeSpan(cluster)).IgnoreError();

  std::vector<uint8_t> data(input.begin(), input.end());
  data.resize(cluster_bytes);
  std::vector<uint8_t> compressed(cluster_bytes - 1);
  const absl::StatusOr<size_t> bytes =
      compress_cluster(type, data, absl::MakeSpan(compressed));
  require(bytes.ok(), "everything can be compressed, or says it cannot");
  if (*bytes == 0) return;
  // As from an image: in whole sectors, with something behind the stream.
  compressed.resize(*bytes);
  compressed.resize((*bytes + 511) / 512 * 512, 0xa5);
  const absl::Status inflated =
      inflate_cluster(type, compressed, absl::MakeSpan(cluster));
  require(inflated.ok(), "what was compressed can be inflated");
  require(cluster == data, "what was compressed comes back");
}

}  // namespace
}  // namespace spindle::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  spindle::testing::fuzz(data[0], absl::MakeConstSpan(data + 1, size - 1));
  return 0;
}

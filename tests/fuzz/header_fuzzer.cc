// Fuzzes the header: what is accepted keeps its limits, and means the same
// after it was written and read again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"
#include "tests/fuzz/exercise.h"

namespace spindle::testing {
namespace {

using qcow2::Header;

// The file is longer than what is seen of it.
constexpr uint64_t kFileBytes = uint64_t{1} << 40;

void must_keep_limits(const Header& header, qcow2::TableChecks checks) {
  require(header.version == 2 || header.version == 3, "a version that exists");
  require(header.cluster_bits >= qcow2::kMinClusterBits &&
              header.cluster_bits <= qcow2::kMaxClusterBits,
          "the limits of cluster_bits");
  require(header.refcount_order <= qcow2::kMaxRefcountOrder,
          "the limit of refcount_order");
  require(header.l1_table_bytes() <= qcow2::kMaxL1TableBytes,
          "the limit of the L1 table");
  require(header.refcount_table_bytes() <= qcow2::kMaxRefcountTableBytes,
          "the limit of the refcount table");
  // A check finds too many itself, and a repair leaves them out.
  require(checks == qcow2::TableChecks::kForCheck ||
              header.snapshot_count <= qcow2::kMaxSnapshotCount,
          "the limit of snapshots");
  require(header.size_bytes <= qcow2::kMaxSizeBytes, "the limit of the size");
  require(header.backing_filename.size() <= qcow2::kMaxBackingFilenameBytes,
          "the limit of the backing file's name");
}

void fuzz(absl::Span<const uint8_t> head) {
  qcow2::looks_like_qcow2(head);
  if (head.size() >= qcow2::kVersion2HeaderBytes)
    qcow2::header_read_length(head, kFileBytes).IgnoreError();
  for (const auto checks :
       {qcow2::TableChecks::kAll, qcow2::TableChecks::kForReading,
        qcow2::TableChecks::kForCheck}) {
    const absl::StatusOr<Header> header =
        qcow2::parse_header(head, kFileBytes, checks);
    if (!header.ok()) continue;
    must_keep_limits(*header, checks);
    qcow2::check_known(*header).IgnoreError();
    qcow2::check_supported(*header, /*read_only=*/true).IgnoreError();
    qcow2::check_supported(*header, /*read_only=*/false).IgnoreError();
    for (uint32_t bit = 0; bit < 64; bit += 7)
      qcow2::feature_name(*header, qcow2::kFeatureTypeIncompatible, bit);

    absl::StatusOr<std::vector<uint8_t>> written =
        qcow2::serialize_header(*header);
    if (!written.ok()) continue;
    written->resize(header->cluster_size_bytes());
    const absl::StatusOr<Header> again =
        qcow2::parse_header(*written, kFileBytes, checks);
    require(again.ok(), "what was written can be read");
    Header expected = *header;
    // Where the name stands, and that the compression type is stated, is the
    // writer's to say.
    expected.backing_file_offset = again->backing_file_offset;
    expected.backing_file_size = again->backing_file_size;
    if (expected.version == qcow2::kVersion3) {
      expected.header_length = std::max<uint32_t>(
          expected.header_length, uint32_t{qcow2::kVersion3HeaderBytes});
    }
    require(*again == expected, "what was written says the same");
  }
}

}  // namespace
}  // namespace spindle::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  spindle::testing::fuzz(absl::MakeConstSpan(data, size));
  return 0;
}

// Fuzzes the snapshot table: of an image that is sound otherwise, its entries
// are the input, behind what is done and their number.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/snapshot_table.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/template_image.h"

namespace spindle::testing {
namespace {

// What is accepted means the same after it was written and read again.
void parse(absl::Span<const uint8_t> table) {
  const absl::StatusOr<qcow2::Snapshot> snapshot =
      qcow2::parse_snapshot(table, /*disk_size_bytes=*/4096);
  if (!snapshot.ok()) return;
  const absl::StatusOr<std::vector<uint8_t>> written =
      qcow2::serialize_snapshot_table({&*snapshot, 1});
  if (!written.ok()) return;
  const absl::StatusOr<qcow2::Snapshot> again =
      qcow2::parse_snapshot(*written, /*disk_size_bytes=*/4096);
  require(again.ok(), "a snapshot that was written can be read");
  require(
      again->info.id == snapshot->info.id &&
          again->info.name == snapshot->info.name &&
          again->info.vm_state_bytes == snapshot->info.vm_state_bytes &&
          again->info.disk_size_bytes == snapshot->info.disk_size_bytes &&
          again->info.instruction_count == snapshot->info.instruction_count &&
          again->unknown_extra == snapshot->unknown_extra &&
          again->l1_table_offset == snapshot->l1_table_offset &&
          again->l1_entry_count == snapshot->l1_entry_count,
      "a snapshot that was written says the same");
}

void fuzz(absl::Span<const uint8_t> program, uint8_t count,
          absl::Span<const uint8_t> table) {
  parse(table);
  const TemplateImage& image = template_image();
  qcow2::Header header = image.header;
  // Behind everything else.
  header.snapshots_offset = align_up(image.file.size(), kTemplateClusterBytes);
  header.snapshot_count = count;
  std::string file = with_header(image, header);
  file.resize(header.snapshots_offset);
  file.append(reinterpret_cast<const char*>(table.data()), table.size());
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

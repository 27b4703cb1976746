#include "formats/qcow2/preallocation.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kZeroBufferBytes = uint64_t{1} << 20;

absl::Status write_out_zeroes(ByteChannel* file, ByteRange area) {
  const std::vector<uint8_t> zeroes(std::min(kZeroBufferBytes, area.length));
  for (uint64_t offset = area.offset; offset < area.end();) {
    const uint64_t length =
        std::min<uint64_t>(zeroes.size(), area.end() - offset);
    absl::Status status =
        file->write(Purpose::kPwritevZero, zeroes.data(), length, offset);
    if (!status.ok()) return status;
    offset += length;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status reserve_zeroes(ByteChannel* file, ByteRange area,
                            Preallocation mode) {
  if (area.empty()) return absl::OkStatus();
  if (mode == Preallocation::kFull) return write_out_zeroes(file, area);
  // Zeroes within the file reserve space; beyond its end they only make it
  // longer.
  absl::Status status = file->set_length(area.end(), SetLengthMode::kGrowOnly);
  if (!status.ok()) return status;
  return file->write_zeroes(
      Purpose::kPwritevZero, area,
      WriteZeroesFlags{.may_unmap = mode == Preallocation::kMetadata});
}

}  // namespace spindle::qcow2

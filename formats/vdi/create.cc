#include "formats/vdi/create.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/base/macros.h"
#include "absl/strings/str_format.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/option_values.h"
#include "engine/sector.h"

namespace spindle::vdi {
namespace {

constexpr uint32_t kEntriesPerWrite = 1 << 16;

// A static image has its blocks in order; of a dynamic one none is stored.
absl::Status write_map(const Header& header, ByteChannel* file) {
  std::vector<uint8_t> bytes;
  for (uint32_t first = 0; first < header.block_count;
       first += kEntriesPerWrite) {
    const uint32_t count =
        std::min(kEntriesPerWrite, header.block_count - first);
    // Zeroes fill the last sector.
    bytes.assign(align_up(count * kMapEntryBytes, kSectorSizeBytes), 0);
    for (uint32_t i = 0; i < count; ++i) {
      store_little32(&bytes[i * kMapEntryBytes],
                     header.type == kStatic ? first + i : kFree);
    }
    absl::Status status =
        file->write(Purpose::kL2Update, bytes.data(), bytes.size(),
                    header.map_offset + uint64_t{first} * kMapEntryBytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status write_all(const Header& header, ByteChannel* file) {
  const auto sector = new_header(header);
  absl::Status status =
      file->write(Purpose::kHeaderUpdate, sector.data(), sector.size(), 0);
  if (status.ok()) status = write_map(header, file);
  if (status.ok() && header.type == kStatic) {
    const uint64_t end =
        header.data_offset + uint64_t{header.block_count} * kBlockBytes;
    status = file->set_length(end, SetLengthMode::kExact);
  }
  return status.ok() ? file->flush() : status;
}

}  // namespace

absl::StatusOr<Header> plan_create(const CreateOptions& options) {
  ABSL_ASSERT(options.size_bytes.has_value());
  Header header;
  header.disk_bytes = *options.size_bytes;
  if (header.disk_bytes > kMaxDiskBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "Unsupported VDI image size (size is %#x, max supported is %#x)",
        header.disk_bytes, kMaxDiskBytes));
  }
  for (const auto& [name, value] : options.options) {
    if (name != "static") {
      return absl::InvalidArgumentError(
          absl::StrFormat("vdi: there is no option '%s'", name));
    }
    const absl::StatusOr<bool> is_static = parse_bool_option(name, value);
    if (!is_static.ok()) return is_static.status();
    if (*is_static) header.type = kStatic;
  }
  header.disk_bytes = align_up(header.disk_bytes, kSectorSizeBytes);
  header.block_count =
      static_cast<uint32_t>(divide_round_up(header.disk_bytes, kBlockBytes));
  if (header.type == kStatic) header.allocated_count = header.block_count;
  header.map_offset = kHeaderBytes;
  header.data_offset = static_cast<uint32_t>(
      kHeaderBytes + align_up(header.map_bytes(), kSectorSizeBytes));
  return header;
}

absl::Status write_image(const Header& header,
                         const std::shared_ptr<BlockDriver>& file) {
  ByteChannel channel(file);
  absl::Status status = write_all(header, &channel);
  // Half an image is of no use, and takes space.
  if (!status.ok() && file->capabilities().has(Capability::kSetLength))
    file->set_length(0, SetLengthMode::kExact).IgnoreError();
  return status;
}

}  // namespace spindle::vdi

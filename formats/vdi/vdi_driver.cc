#include "formats/vdi/vdi_driver.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/bounce_driver.h"
#include "engine/byte_order.h"
#include "engine/io_vector.h"
#include "formats/vdi/check.h"

namespace spindle::vdi {
namespace {

// Only ever read.
alignas(4096) uint8_t zero_block[kBlockBytes];

absl::StatusOr<Header> read_header(ByteChannel* file) {
  std::array<uint8_t, kHeaderBytes> sector;
  const uint64_t file_bytes = file->length_bytes();
  const size_t length = std::min<uint64_t>(file_bytes, sector.size());
  absl::Status status =
      file->read(Purpose::kHeaderLoad, sector.data(), length, 0);
  if (!status.ok()) return status;
  return parse_header(absl::MakeConstSpan(sector).first(length), file_bytes);
}

absl::StatusOr<BlockMap> read_map(ByteChannel* file, const Header& header) {
  std::vector<uint32_t> entries(header.block_count);
  absl::Status status = file->read(Purpose::kL2Load, entries.data(),
                                   header.map_bytes(), header.map_offset);
  if (!status.ok()) return status;
  for (uint32_t& entry : entries) entry = load_little32(&entry);
  return BlockMap(std::move(entries));
}

}  // namespace

absl::StatusOr<std::shared_ptr<BlockDriver>> open_vdi(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options) {
  if (options.snapshot.has_value())
    return absl::UnimplementedError("vdi: images have no snapshots");
  if (!options.driver_options.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("vdi: there is no option '",
                     options.driver_options.begin()->first, "'"));
  }
  ByteChannel channel(file);
  const absl::StatusOr<Header> header = read_header(&channel);
  if (!header.ok()) return header.status();
  absl::StatusOr<BlockMap> map = read_map(&channel, *header);
  if (!map.ok()) return map.status();
  // A check reads only, and wants to see what is damaged.
  const bool read_only = options.read_only || options.for_check;
  if (!read_only) {
    absl::Status status = map->prepare_for_changes();
    if (!status.ok()) return status;
  }
  return std::make_shared<BounceDriver>(
      std::make_unique<VdiDriver>(std::move(file), *header, *std::move(map),
                                  read_only),
      /*max_bounce_bytes=*/kBlockBytes);
}

VdiDriver::VdiDriver(std::shared_ptr<BlockDriver> file, const Header& header,
                     BlockMap map, bool read_only)
    : header_(header),
      read_only_(read_only),
      file_(std::move(file)),
      map_(std::move(map)),
      allocated_count_(header.allocated_count) {}

VdiDriver::Piece VdiDriver::first_piece(uint64_t offset_bytes,
                                        size_t length_bytes) {
  const uint32_t offset = offset_bytes % kBlockBytes;
  return {static_cast<uint32_t>(offset_bytes / kBlockBytes), offset,
          std::min<size_t>(length_bytes, kBlockBytes - offset)};
}

std::optional<uint32_t> VdiDriver::find(uint32_t index) {
  MetadataReaderLock lock(&mutex_);
  return map_.find(index);
}

absl::Status VdiDriver::read(void* to, size_t length_bytes,
                             uint64_t offset_bytes) {
  ABSL_ASSERT(offset_bytes + length_bytes <= header_.disk_bytes);
  uint8_t* next = static_cast<uint8_t*>(to);
  while (length_bytes > 0) {
    const Piece piece = first_piece(offset_bytes, length_bytes);
    const std::optional<uint32_t> block = find(piece.index);
    if (block.has_value()) {
      absl::Status status =
          file_.read(Purpose::kReadAio, next, piece.length_bytes,
                     place_of(*block, piece.offset));
      if (!status.ok()) return status;
    } else {
      std::memset(next, 0, piece.length_bytes);
    }
    next += piece.length_bytes;
    offset_bytes += piece.length_bytes;
    length_bytes -= piece.length_bytes;
  }
  return absl::OkStatus();
}

absl::Status VdiDriver::write(const void* from, size_t length_bytes,
                              uint64_t offset_bytes) {
  ABSL_ASSERT(!read_only_);
  ABSL_ASSERT(offset_bytes + length_bytes <= header_.disk_bytes);
  const uint8_t* next = static_cast<const uint8_t*>(from);
  while (length_bytes > 0) {
    const Piece piece = first_piece(offset_bytes, length_bytes);
    absl::Status status = write_piece(piece, next);
    if (!status.ok()) return status;
    next += piece.length_bytes;
    offset_bytes += piece.length_bytes;
    length_bytes -= piece.length_bytes;
  }
  return absl::OkStatus();
}

absl::Status VdiDriver::write_piece(const Piece& piece, const uint8_t* from) {
  std::optional<uint32_t> block;
  bool is_first = false;
  {
    MetadataLock lock(&mutex_);
    // What is written next to it must not be lost to its zeroes.
    while (first_writes_.contains(piece.index)) mutex_.wait(&changed_);
    block = map_.find(piece.index);
    if (!block.has_value()) {
      block = map_.take_free();
      if (!block.has_value())
        return absl::InternalError("vdi: no block of the file is free");
      first_writes_.insert(piece.index);
      is_first = true;
    }
  }
  if (!is_first) {
    return file_.write(Purpose::kWriteAio, from, piece.length_bytes,
                       place_of(*block, piece.offset));
  }
  const absl::Status status = write_first(piece, from, *block);
  MetadataLock lock(&mutex_);
  if (status.ok()) {
    map_.set(piece.index, *block);
  } else {
    map_.give_back(*block);
  }
  first_writes_.erase(piece.index);
  changed_.SignalAll();
  return status;
}

// The whole block, in one write.
absl::Status VdiDriver::write_first(const Piece& piece, const uint8_t* from,
                                    uint32_t block) {
  const IoVector qiov{
      {zero_block, piece.offset},
      {const_cast<uint8_t*>(from), piece.length_bytes},
      {zero_block, kBlockBytes - piece.offset - piece.length_bytes}};
  return file_.write(Purpose::kClusterAlloc, qiov, place_of(block, 0));
}

absl::Status VdiDriver::flush() {
  BlockMap::Changes changes;
  {
    MetadataLock lock(&mutex_);
    // Two at a time could write an older sector of the map over a newer one.
    while (flushing_) mutex_.wait(&changed_);
    flushing_ = true;
    changes = map_.take_changes();
  }
  const absl::Status status = write_changes(changes);
  MetadataLock lock(&mutex_);
  if (!status.ok()) {
    map_.put_back(changes);
  } else if (!changes.runs.empty()) {
    allocated_count_ = changes.allocated_count;
  }
  flushing_ = false;
  changed_.SignalAll();
  return status;
}

absl::Status VdiDriver::write_changes(const BlockMap::Changes& changes) {
  if (changes.runs.empty()) return file_.flush();
  uint8_t count[sizeof(uint32_t)];
  store_little32(count, changes.allocated_count);
  absl::Status status = file_.write(Purpose::kHeaderUpdate, count,
                                    sizeof(count), kAllocatedOffset);
  if (status.ok()) status = file_.flush();
  for (const BlockMap::Changes::Run& run : changes.runs) {
    if (!status.ok()) return status;
    status = file_.write(Purpose::kL2Update, run.bytes.data(), run.bytes.size(),
                         header_.map_offset + run.offset);
  }
  return status.ok() ? file_.flush() : status;
}

void VdiDriver::add_to_info(ImageInfo* info) const {
  info->actual_size_bytes = file_.child().info().actual_size_bytes;
  info->cluster_size_bytes = kBlockBytes;
}

absl::StatusOr<BlockStatus> VdiDriver::block_status(ByteRange range,
                                                    BlockStatusScope) {
  const Piece piece = first_piece(range.offset, range.length);
  BlockStatus status;
  status.allocated = true;  // there is no other layer
  uint64_t end = range.offset + piece.length_bytes;
  std::optional<uint32_t> block;
  {
    MetadataReaderLock lock(&mutex_);
    block = map_.find(piece.index);
    // Blocks without a place are one answer.
    while (!block.has_value() && end < range.end() &&
           !map_.find(end / kBlockBytes).has_value()) {
      end += std::min<uint64_t>(kBlockBytes, range.end() - end);
    }
  }
  status.length = end - range.offset;
  status.data = block.has_value();
  status.zero = !status.data;
  if (status.data) {
    status.host_offset = place_of(*block, piece.offset);
    // A static image's holes are its file's.
    if (header_.type == kStatic) {
      const absl::StatusOr<BlockStatus> stored =
          file_.block_status({*status.host_offset, status.length});
      if (!stored.ok()) return stored.status();
      status.zero = stored->zero;
      status.length = std::min(status.length, stored->length);
    }
  }
  status.end_of_image = range.offset + status.length == header_.disk_bytes;
  return status;
}

absl::StatusOr<CheckResult> VdiDriver::check(const CheckOptions& options) {
  if (options.fix_leaks || options.fix_errors)
    return absl::UnimplementedError("vdi: images cannot be repaired");
  std::vector<uint32_t> entries;
  uint32_t allocated_count = 0;
  {
    MetadataReaderLock lock(&mutex_);
    entries = map_.entries();
    allocated_count = allocated_count_;
  }
  return check_map(entries, allocated_count, options);
}

absl::Status VdiDriver::close() {
  const absl::Status status = read_only_ ? absl::OkStatus() : flush();
  const absl::Status closed = file_.child().close();
  return status.ok() ? closed : status;
}

}  // namespace spindle::vdi

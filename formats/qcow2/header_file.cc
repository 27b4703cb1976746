#include "formats/qcow2/header_file.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "formats/qcow2/bitmap_directory.h"

namespace spindle::qcow2 {
namespace {

using Bytes = std::vector<uint8_t>;

// QEMU names the features where so much is left behind what stands before.
constexpr uint64_t kFeatureNamesNeedBytes = 4096;
constexpr size_t kSector = kSectorSizeBytes;

size_t stored_bytes(const HeaderExtension& extension) {
  return kExtensionHeaderBytes +
         align_up(extension.data.size(), kExtensionAlignment);
}

// One past the last byte that is not zero.
size_t used_bytes(const Bytes& cluster) {
  const auto last = std::find_if(cluster.rbegin(), cluster.rend(),
                                 [](uint8_t byte) { return byte != 0; });
  return static_cast<size_t>(cluster.rend() - last);
}

class HeaderSwitch {
 public:
  HeaderSwitch(ByteChannel* file, const Header& next)
      : file_(file), next_(next) {}

  absl::Status run();

 private:
  // Writes [begin, end) of `bytes` to the same place, durably.
  absl::Status put(const Bytes& bytes, size_t begin, size_t end) {
    if (begin >= end) return absl::OkStatus();
    absl::Status status =
        file_->write(Purpose::kHeaderUpdate, &bytes[begin], end - begin, begin);
    return status.ok() ? file_->flush() : status;
  }
  absl::Status put_first_sector(const Bytes& bytes) {
    return put(bytes, 0, std::min(kSector, bytes.size()));
  }
  absl::Status put_rest(const Bytes& bytes) {
    return put(bytes, kSector, bytes.size());
  }
  // The cluster with a header that says what next_ says, but needs nothing that
  // either of the two has between the first sector and `end`.
  std::optional<Bytes> make_bridge(size_t end) const;

  ByteChannel* const file_;
  const Header& next_;
};

std::optional<Bytes> HeaderSwitch::make_bridge(size_t end) const {
  Header header = next_;
  std::erase_if(header.extensions, [](const HeaderExtension& extension) {
    return extension.type == kExtensionFeatureNames;
  });
  const size_t cluster = header.cluster_size_bytes();
  const std::string name = header.backing_filename;
  const absl::StatusOr<Bytes> with_name = serialize_header(header);
  if (with_name.ok() && with_name->size() <= kSector) {
    Bytes bytes = *with_name;
    bytes.resize(cluster);
    return bytes;
  }
  // The name goes behind everything.
  header.backing_filename.clear();
  const absl::StatusOr<Bytes> without = serialize_header(header);
  const size_t place = align_up(end, kSector);
  if (!without.ok() || without->size() > kSector || name.empty() ||
      place + name.size() > cluster) {
    return std::nullopt;
  }
  Bytes bytes = *without;
  bytes.resize(cluster);
  store_big64(&bytes[kBackingFileOffsetOffset], place);
  store_big32(&bytes[kBackingFileSizeOffset],
              static_cast<uint32_t>(name.size()));
  std::memcpy(&bytes[place], name.data(), name.size());
  return bytes;
}

absl::Status HeaderSwitch::run() {
  absl::StatusOr<Bytes> serialized = serialize_header(next_);
  if (!serialized.ok()) return serialized.status();
  Bytes next = *std::move(serialized);
  next.resize(next_.cluster_size_bytes());
  Bytes old(next.size());
  absl::Status status =
      file_->read(Purpose::kHeaderLoad, old.data(), old.size(), 0);
  if (!status.ok()) return status;
  if (old == next) return absl::OkStatus();

  const size_t old_end = used_bytes(old);
  const size_t next_end = used_bytes(next);
  const bool same_rest =
      old.size() <= kSector ||
      std::equal(old.begin() + kSector, old.end(), next.begin() + kSector);
  if (same_rest) return put_first_sector(next);
  if (next_end <= kSector) {
    status = put_first_sector(next);
    return status.ok() ? put_rest(next) : status;
  }
  if (old_end <= kSector) {
    status = put_rest(next);
    return status.ok() ? put_first_sector(next) : status;
  }
  const size_t end = std::max(old_end, next_end);
  const std::optional<Bytes> bridge = make_bridge(end);
  // Names that are hundreds of bytes long in a small cluster: there is no place
  // to go round.
  if (!bridge.has_value()) return put(next, 0, next.size());
  if (used_bytes(*bridge) > kSector)
    status = put(*bridge, align_up(end, kSector), bridge->size());
  if (status.ok()) status = put_first_sector(*bridge);
  if (status.ok()) status = put(next, kSector, next_end);
  if (status.ok()) status = put_first_sector(next);
  return status.ok() ? put_rest(next) : status;
}

}  // namespace

void order_extensions(Header* header) {
  std::vector<HeaderExtension> left = std::move(header->extensions);
  header->extensions.clear();
  const auto take = [&](uint32_t type) {
    for (HeaderExtension& extension : left) {
      if (extension.type == type)
        header->extensions.push_back(std::move(extension));
    }
    std::erase_if(left,
                  [type](const HeaderExtension& e) { return e.type == type; });
  };
  take(kExtensionDataFile);
  take(kExtensionEncryption);
  std::erase_if(left, [](const HeaderExtension& e) {
    return e.type == kExtensionFeatureNames;
  });
  size_t used = header->version >= kVersion3
                    ? kVersion3HeaderBytes + header->unknown_fields.size()
                    : kVersion2HeaderBytes;
  if (!header->backing_format.empty())
    used += stored_bytes({kExtensionBackingFormat, header->backing_format});
  for (const HeaderExtension& extension : header->extensions)
    used += stored_bytes(extension);
  if (header->version >= kVersion3 &&
      used + kFeatureNamesNeedBytes <= header->cluster_size_bytes()) {
    header->extensions.push_back(default_feature_names());
  }
  take(kExtensionBitmaps);
  header->extensions.insert(header->extensions.end(), left.begin(), left.end());
}

absl::StatusOr<Header> read_header(ByteChannel* file, TableChecks checks) {
  const uint64_t file_length = file->length_bytes();
  Bytes head(std::min<uint64_t>(file_length, kVersion2HeaderBytes));
  absl::Status status =
      file->read(Purpose::kHeaderLoad, head.data(), head.size(), 0);
  if (!status.ok()) return status;
  const absl::StatusOr<uint64_t> wanted = header_read_length(head, file_length);
  if (!wanted.ok()) return wanted.status();
  head.resize(*wanted);
  status = file->read(Purpose::kHeaderLoad, head.data(), head.size(), 0);
  if (!status.ok()) return status;
  absl::StatusOr<Header> header = parse_header(head, file_length, checks);
  if (!header.ok()) return header;
  status = find_bitmap_directory(*header).status();
  if (!status.ok()) return status;
  return header;
}

absl::Status switch_header(ByteChannel* file, const Header& next) {
  return HeaderSwitch(file, next).run();
}

absl::Status replace_header(ByteChannel* file, Corruption* corruption,
                            const Header& old, const Header& next) {
  // One that does not fit is refused before anything is written.
  absl::Status status = serialize_header(next).status();
  if (!status.ok()) return status;
  status = switch_header(file, next);
  if (status.ok()) return status;
  if (!switch_header(file, old).ok()) {
    corruption
        ->report(absl::StrCat("the header could not be replaced: ",
                              status.message()))
        .IgnoreError();
  }
  return status;
}

}  // namespace spindle::qcow2

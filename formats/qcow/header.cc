#include "formats/qcow/header.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/errors.h"

namespace spindle::qcow {
namespace {

absl::Status bad_field(absl::string_view field, uint64_t value,
                       absl::string_view why) {
  return absl::DataLossError(
      absl::StrCat("qcow: ", field, " is ", value, ": ", why));
}

// The same, with what QEMU's tools say of it.
absl::Status bad_field(absl::string_view field, uint64_t value,
                       absl::string_view why, absl::string_view qemu_words) {
  return with_qemu_words(bad_field(field, value, why), qemu_words);
}

absl::Status check_magic_and_version(absl::Span<const uint8_t> head) {
  if (head.size() < kHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("qcow: the file has ", head.size(),
                     " bytes; a header has ", kHeaderBytes));
  }
  const uint32_t magic = load_big32(&head[kMagicOffset]);
  if (magic != kMagic) {
    return with_qemu_words(absl::InvalidArgumentError(absl::StrFormat(
                               "qcow: magic is %#010x, not %#010x: not a qcow "
                               "image",
                               magic, kMagic)),
                           "Image not in qcow format");
  }
  const uint32_t version = load_big32(&head[kVersionOffset]);
  if (version != kVersion) {
    const bool is_qcow2 = version == 2 || version == 3;
    return with_qemu_words(
        absl::UnimplementedError(absl::StrCat(
            "qcow: version is ", version, "; version 1 is supported",
            is_qcow2 ? " (this one is for qcow2)" : "")),
        absl::StrCat("qcow (v1) does not support qcow version ", version,
                     is_qcow2 ? "\nTry the 'qcow2' driver instead." : ""));
  }
  return absl::OkStatus();
}

// What sizes everything else.
absl::Status check_sizes(const Header& header) {
  const auto check = [](absl::string_view field, uint64_t value, uint64_t least,
                        uint64_t most, absl::string_view qemu_words) {
    if (value >= least && value <= most) return absl::OkStatus();
    return bad_field(field, value,
                     absl::StrCat("must be ", least, " to ", most), qemu_words);
  };
  absl::Status status =
      check("cluster_bits", header.cluster_bits, kMinClusterBits,
            kMaxClusterBits, "Cluster size must be between 512 and 64k");
  if (status.ok()) {
    status = check("l2_bits", header.l2_bits, kMinL2Bits, kMaxL2Bits,
                   "L2 table size must be between 512 and 64k");
  }
  if (!status.ok()) return status;
  const uint64_t most =
      std::min(kMaxFileBytes, kMaxL1Entries * header.l1_entry_coverage_bytes());
  return check("size", header.size_bytes, kMinSizeBytes, most,
               header.size_bytes < kMinSizeBytes
                   ? "Image size is too small (must be at least 2 bytes)"
                   : "Image too large");
}

// The table must stand behind the header and within the file.
absl::Status check_l1_table(const Header& header, uint64_t file_bytes) {
  const uint64_t offset = header.l1_table_offset;
  if (offset < kHeaderBytes) {
    return bad_field("l1_table_offset", offset,
                     absl::StrCat("the header takes ", kHeaderBytes, " bytes"));
  }
  const std::optional<uint64_t> end =
      checked_add(offset, header.l1_table_bytes());
  if (!end.has_value() || *end > file_bytes) {
    return bad_field(
        "l1_table_offset", offset,
        absl::StrCat("a table of ", header.l1_entry_count(),
                     " entries ends beyond the file's ", file_bytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status check_backing_filename(const Header& header, uint64_t file_bytes) {
  const uint64_t offset = header.backing_file_offset;
  const uint64_t size = header.backing_file_size;
  if (offset == 0 || size == 0) return absl::OkStatus();
  if (size > kMaxBackingFilenameBytes) {
    return bad_field("backing_file_size", size,
                     absl::StrCat("the limit is ", kMaxBackingFilenameBytes),
                     "Backing file name too long");
  }
  if (offset < kHeaderBytes) {
    return bad_field("backing_file_offset", offset,
                     absl::StrCat("the header takes ", kHeaderBytes, " bytes"));
  }
  const std::optional<uint64_t> end = checked_add(offset, size);
  if (!end.has_value() || *end > file_bytes) {
    return bad_field(
        "backing_file_offset", offset,
        absl::StrCat("a name of ", size, " bytes ends beyond the file's ",
                     file_bytes, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

bool looks_like_qcow(absl::Span<const uint8_t> head) {
  return head.size() >= kHeaderBytes &&
         load_big32(&head[kMagicOffset]) == kMagic &&
         load_big32(&head[kVersionOffset]) == kVersion;
}

absl::StatusOr<Header> parse_header(absl::Span<const uint8_t> head,
                                    uint64_t file_bytes) {
  absl::Status status = check_magic_and_version(head);
  if (!status.ok()) return status;
  Header header;
  header.backing_file_offset = load_big64(&head[kBackingFileOffsetOffset]);
  header.backing_file_size = load_big32(&head[kBackingFileSizeOffset]);
  header.modification_time = load_big32(&head[kModificationTimeOffset]);
  header.size_bytes = load_big64(&head[kSizeOffset]);
  header.cluster_bits = head[kClusterBitsOffset];
  header.l2_bits = head[kL2BitsOffset];
  header.crypt_method = load_big32(&head[kCryptMethodOffset]);
  header.l1_table_offset = load_big64(&head[kL1TableOffsetOffset]);
  if (status = check_sizes(header); !status.ok()) return status;
  if (header.crypt_method > kCryptAes) {
    return with_qemu_words(absl::UnimplementedError(absl::StrCat(
                               "qcow: crypt_method is ", header.crypt_method,
                               "; 0 (none) and 1 (AES) are supported")),
                           "invalid encryption method in qcow header");
  }
  status = check_l1_table(header, file_bytes);
  if (status.ok()) status = check_backing_filename(header, file_bytes);
  if (!status.ok()) return status;
  return header;
}

absl::StatusOr<Header> read_header(ByteChannel* file) {
  const uint64_t file_bytes = file->length_bytes();
  std::vector<uint8_t> head(std::min<uint64_t>(file_bytes, kHeaderBytes));
  absl::Status status =
      file->read(Purpose::kHeaderLoad, head.data(), head.size(), 0);
  if (!status.ok()) return status;
  absl::StatusOr<Header> header = parse_header(head, file_bytes);
  if (!header.ok() || header->backing_file_offset == 0) return header;
  std::string name(header->backing_file_size, '\0');
  status = file->read(Purpose::kHeaderLoad, name.data(), name.size(),
                      header->backing_file_offset);
  if (!status.ok()) return status;
  if (name.find('\0') != std::string::npos) {
    return bad_field("backing_file_size", name.size(),
                     "the name holds a zero byte");
  }
  header->backing_filename = std::move(name);
  return header;
}

std::vector<uint8_t> serialize_header(const Header& header) {
  std::vector<uint8_t> bytes(kHeaderBytes);
  store_big32(&bytes[kMagicOffset], kMagic);
  store_big32(&bytes[kVersionOffset], kVersion);
  store_big64(&bytes[kBackingFileOffsetOffset], header.backing_file_offset);
  store_big32(&bytes[kBackingFileSizeOffset], header.backing_file_size);
  store_big32(&bytes[kModificationTimeOffset], header.modification_time);
  store_big64(&bytes[kSizeOffset], header.size_bytes);
  bytes[kClusterBitsOffset] = static_cast<uint8_t>(header.cluster_bits);
  bytes[kL2BitsOffset] = static_cast<uint8_t>(header.l2_bits);
  store_big32(&bytes[kCryptMethodOffset], header.crypt_method);
  store_big64(&bytes[kL1TableOffsetOffset], header.l1_table_offset);
  bytes.insert(bytes.end(), header.backing_filename.begin(),
               header.backing_filename.end());
  return bytes;
}

}  // namespace spindle::qcow

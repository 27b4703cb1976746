#include "formats/qcow/create.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/base/macros.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/qcow/layout.h"

namespace spindle::qcow {
namespace {

// QEMU's: clusters of 4 KiB under L2 tables of 4 KiB; over a backing file, of
// 512 bytes, so that nothing need be copied, under tables of 32 KiB.
constexpr uint32_t kClusterBits = 12;
constexpr uint32_t kL2Bits = 9;
constexpr uint32_t kOverlayClusterBits = 9;
constexpr uint32_t kOverlayL2Bits = 12;
constexpr uint64_t kL1Alignment = 8;

absl::Status write_all(const Header& header, ByteChannel* file) {
  // The table's last sector is whole.
  const ByteRange l1{header.l1_table_offset,
                     align_up(header.l1_table_bytes(), kSectorSizeBytes)};
  absl::Status status = file->write_zeroes(Purpose::kL1Update, l1, {});
  if (!status.ok()) return status;
  std::vector<uint8_t> head = serialize_header(header);
  // Up to the table: a device may have something there.
  head.resize(header.l1_table_offset);
  status = file->write(Purpose::kHeaderUpdate, head.data(), head.size(), 0);
  return status.ok() ? file->flush() : status;
}

// The key is no part of the image: it is looked for so that nobody makes one
// that he cannot open.
absl::Status plan_encryption(const CreateOptions& options, Header* header) {
  for (const auto& [name, value] : options.options) {
    if (name == crypto::kOldOption ||
        absl::StartsWith(name, crypto::kEncryptPrefix)) {
      continue;
    }
    return absl::InvalidArgumentError(
        absl::StrCat("qcow: there is no option '", name, "'"));
  }
  const absl::StatusOr<std::string> format =
      crypto::find_create_format(options.options);
  if (!format.ok()) return format.status();
  if (format->empty()) return absl::OkStatus();
  if (*format != crypto::kFormatAes) {
    return absl::InvalidArgumentError(
        *format == "luks"
            ? "Unsupported encryption format"
            : absl::StrCat("Parameter 'format' does not accept value '",
                           *format, "'"));
  }
  header->crypt_method = kCryptAes;
  return crypto::find_open_secret(options.options, *format,
                                  options.secrets.get())
      .status();
}

}  // namespace

std::vector<OptionHelp> create_options() {
  return {
      {"backing_file", "<str>", "File name of a base image"},
      {"backing_fmt", "<str>", "Format of the backing image"},
      {"encrypt.format", "<str>", "Encrypt the image, format choices: 'aes'"},
      {"encrypt.key-secret", "<str>",
       "ID of the secret that provides the AES encryption key"},
      {"encryption", "<bool (on/off)>",
       "Encrypt the image with format 'aes'. (Deprecated in favor of "
       "encrypt.format=aes)"},
      {"size", "<size>", "Virtual disk size"},
  };
}

absl::StatusOr<Header> plan_create(const CreateOptions& options) {
  ABSL_ASSERT(options.size_bytes.has_value());
  Header header;
  if (*options.size_bytes == 0) {
    return absl::InvalidArgumentError(
        "Image size is too small, cannot be zero length");
  }
  const std::optional<uint64_t> size =
      checked_align_up(*options.size_bytes, kSectorSizeBytes);
  const bool has_backing = !options.backing_filename.empty();
  header.cluster_bits = has_backing ? kOverlayClusterBits : kClusterBits;
  header.l2_bits = has_backing ? kOverlayL2Bits : kL2Bits;
  const uint64_t limit = align_down(
      std::min(kMaxFileBytes, kMaxL1Entries * header.l1_entry_coverage_bytes()),
      kSectorSizeBytes);
  if (!size.has_value() || *size > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("Image too large: the size is ", *options.size_bytes,
                     " bytes; a qcow image has at most ", limit));
  }
  header.size_bytes = *size;
  if (options.backing_filename.size() > kMaxBackingFilenameBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the backing file's name has ", options.backing_filename.size(),
        " bytes; the limit is ", kMaxBackingFilenameBytes));
  }
  if (has_backing) {
    header.backing_filename = options.backing_filename;
    header.backing_file_offset = kHeaderBytes;
    header.backing_file_size =
        static_cast<uint32_t>(options.backing_filename.size());
  }
  header.l1_table_offset =
      align_up(kHeaderBytes + options.backing_filename.size(), kL1Alignment);
  if (absl::Status status = plan_encryption(options, &header); !status.ok())
    return status;
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

}  // namespace spindle::qcow

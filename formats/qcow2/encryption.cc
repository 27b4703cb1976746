#include "formats/qcow2/encryption.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/crypto/legacy_aes.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

absl::StatusOr<ByteRange> luks_area(const Header& header,
                                    uint64_t file_length_bytes) {
  const absl::StatusOr<std::optional<ByteRange>> area =
      find_luks_header(header);
  if (!area.ok()) return area.status();
  if (!area->has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "qcow2: Missing CRYPTO header for crypt method ", kCryptLuks));
  }
  const std::optional<uint64_t> file_end =
      checked_align_up(file_length_bytes, header.cluster_size_bytes());
  const std::optional<uint64_t> end =
      checked_add((*area)->offset, (*area)->length);
  if (!end.has_value() || !file_end.has_value() || *end > *file_end) {
    return absl::DataLossError(absl::StrCat(
        "qcow2: the encryption header, ", (*area)->length, " bytes at offset ",
        (*area)->offset, ", ends beyond the file's ", file_length_bytes));
  }
  return **area;
}

}  // namespace

absl::string_view encryption_name(const Header& header) {
  switch (header.crypt_method) {
    case kCryptAes:
      return crypto::kFormatAes;
    case kCryptLuks:
      return crypto::kFormatLuks;
    default:
      return "";
  }
}

absl::StatusOr<std::optional<ByteRange>> find_luks_header(
    const Header& header) {
  const HeaderExtension* const extension =
      header.find_extension(kExtensionEncryption);
  if (extension == nullptr) return std::nullopt;
  if (header.crypt_method != kCryptLuks) {
    constexpr absl::string_view kWords =
        "CRYPTO header extension only expected with LUKS encryption method";
    return with_qemu_words(
        absl::InvalidArgumentError(absl::StrCat("qcow2: ", kWords)), kWords);
  }
  if (extension->data.size() != kEncryptionExtensionBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "qcow2: CRYPTO header extension size ", extension->data.size(),
        ", but expected size ", kEncryptionExtensionBytes));
  }
  const ByteRange area{
      load_big64(extension->data.data() + kEncryptionOffsetOffset),
      load_big64(extension->data.data() + kEncryptionLengthOffset)};
  if (!is_aligned(area.offset, header.cluster_size_bytes())) {
    return absl::InvalidArgumentError(
        absl::StrCat("qcow2: Encryption header offset '", area.offset,
                     "' is not a multiple of cluster size '",
                     header.cluster_size_bytes(), "'"));
  }
  return area;
}

Encryption::Encryption(std::unique_ptr<luks::Volume> luks,
                       std::unique_ptr<crypto::SectorCipher> cipher,
                       size_t memory_alignment_bytes)
    : luks_(std::move(luks)),
      transfer_(std::move(cipher), memory_alignment_bytes) {}

absl::StatusOr<std::unique_ptr<Encryption>> Encryption::open(
    std::shared_ptr<BlockDriver> file, const Header& header,
    const OptionMap& options, std::shared_ptr<const SecretStore> secrets,
    size_t memory_alignment_bytes) {
  absl::StatusOr<ByteRange> area = ByteRange{};
  if (header.crypt_method == kCryptLuks) {
    area = luks_area(header, file->length_bytes());
  } else {
    const absl::Status status = find_luks_header(header).status();
    if (!status.ok()) return status;
  }
  if (!area.ok()) return area.status();
  const auto secret =
      crypto::find_open_secret(options, encryption_name(header), secrets.get());
  if (!secret.ok()) return secret.status();
  if (*secret == nullptr) return nullptr;
  std::unique_ptr<luks::Volume> luks;
  if (header.crypt_method == kCryptLuks) {
    auto volume = luks::Volume::open(std::move(file), *area, (*secret)->span(),
                                     std::move(secrets));
    if (!volume.ok()) return volume.status();
    luks = *std::move(volume);
  }
  auto cipher = luks == nullptr ? crypto::legacy_aes_cipher((*secret)->span())
                                : luks->make_cipher();
  if (!cipher.ok()) return cipher.status();
  // Not through make_unique: the constructor is private.
  return std::unique_ptr<Encryption>(new Encryption(
      std::move(luks), *std::move(cipher), memory_alignment_bytes));
}

absl::Status Encryption::amend(
    const AmendOptions& options,
    absl::FunctionRef<absl::Status(luks::Volume::Write)> around) {
  if (luks_ != nullptr) return luks_->amend(options, around);
  return absl::UnimplementedError(
      "Only LUKS encryption options can be amended");
}

absl::Status Encryption::reread() {
  return luks_ == nullptr ? absl::OkStatus() : luks_->reread();
}

}  // namespace spindle::qcow2

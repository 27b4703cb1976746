#include "formats/qcow2/header_words.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kSnapshotHeaderBytes = 40;

class HeaderReader {
 public:
  explicit HeaderReader(absl::Span<const uint8_t> head) : head_(head) {}

  // In the order in which QEMU looks at the fields.
  std::string words() const;

 private:
  // What is not there is zero.
  uint32_t field32(size_t offset) const {
    return offset + 4 <= head_.size() ? load_big32(&head_[offset]) : 0;
  }
  uint64_t field64(size_t offset) const {
    return offset + 8 <= head_.size() ? load_big64(&head_[offset]) : 0;
  }
  bool is_version3() const { return field32(kVersionOffset) >= kVersion3; }
  uint64_t cluster_bytes() const {
    return uint64_t{1} << field32(kClusterBitsOffset);
  }
  uint64_t incompatible() const {
    return is_version3() ? field64(kIncompatibleFeaturesOffset) : 0;
  }

  std::string basic_words() const;
  std::string feature_words() const;
  std::string table_words() const;
  std::string table(absl::string_view name, uint64_t offset, uint64_t entries,
                    uint64_t entry_bytes, uint64_t limit_bytes) const;
  // REQUIRES: is_version3().
  std::string compression_words() const;
  // From the image's own table of names.
  std::string feature_name(int bit) const;

  const absl::Span<const uint8_t> head_;
};

std::string HeaderReader::basic_words() const {
  if (field32(kMagicOffset) != kMagic) return "Image is not in qcow2 format";
  const uint32_t version = field32(kVersionOffset);
  if (version < kVersion2 || version > kVersion3)
    return absl::StrCat("Unsupported qcow2 version ", version);
  const uint32_t cluster_bits = field32(kClusterBitsOffset);
  if (cluster_bits < kMinClusterBits || cluster_bits > kMaxClusterBits)
    return absl::StrCat("Unsupported cluster size: 2^", cluster_bits);
  if (is_version3()) {
    const uint32_t length = field32(kHeaderLengthOffset);
    if (length < kVersion3MinHeaderBytes) return "qcow2 header too short";
    if (length > cluster_bytes()) return "qcow2 header exceeds cluster size";
  }
  if (field64(kBackingFileOffsetOffset) > cluster_bytes())
    return "Invalid backing file offset";
  return {};
}

std::string HeaderReader::feature_name(int bit) const {
  constexpr size_t kNameBytes = 48;
  size_t at =
      is_version3() ? field32(kHeaderLengthOffset) : kVersion2HeaderBytes;
  while (at + kExtensionHeaderBytes <= head_.size()) {
    const uint32_t type = field32(at);
    const uint64_t length = field32(at + 4);
    at += kExtensionHeaderBytes;
    if (type == kExtensionEnd || length > head_.size() - at) break;
    if (type == kExtensionFeatureNames) {
      for (size_t entry = at; entry + kNameBytes <= at + length;
           entry += kNameBytes) {
        if (head_[entry] != 0 || head_[entry + 1] != bit) continue;
        const auto* const name =
            reinterpret_cast<const char*>(&head_[entry + 2]);
        return std::string(name, ::strnlen(name, kNameBytes - 2));
      }
    }
    at += align_up(length, kExtensionAlignment);
  }
  return {};
}

std::string HeaderReader::compression_words() const {
  const uint8_t type = field32(kHeaderLengthOffset) > kCompressionTypeOffset &&
                               kCompressionTypeOffset < head_.size()
                           ? head_[kCompressionTypeOffset]
                           : kCompressionZlib;
  if (type > kCompressionZstd)
    return absl::StrCat("qcow2: unknown compression type: ", type);
  const bool announced = (incompatible() & kIncompatibleCompressionType) != 0;
  if (announced == (type != kCompressionZlib)) return {};
  return absl::StrCat("qcow2: Compression type incompatible feature bit must ",
                      announced ? "not " : "", "be set");
}

std::string HeaderReader::feature_words() const {
  if (is_version3()) {
    std::string words = compression_words();
    if (!words.empty()) return words;
  }
  const uint64_t unknown = incompatible() & ~kIncompatibleKnown;
  if (unknown != 0) {
    return unknown_feature_words(unknown,
                                 [this](int bit) { return feature_name(bit); });
  }
  if (is_version3() && field32(kRefcountOrderOffset) > kMaxRefcountOrder)
    return "Reference count entry width too large; may not exceed 64 bits";
  const uint32_t encryption = field32(kCryptMethodOffset);
  if (encryption > kCryptLuks) {
    return absl::StrCat("Unsupported encryption method ",
                        static_cast<int32_t>(encryption));
  }
  return {};
}

std::string HeaderReader::table(absl::string_view name, uint64_t offset,
                                uint64_t entries, uint64_t entry_bytes,
                                uint64_t limit_bytes) const {
  if (entries > limit_bytes / entry_bytes)
    return absl::StrCat(name, " too large");
  const uint64_t bytes = entries * entry_bytes;
  constexpr uint64_t kMaxOffset = INT64_MAX;
  if (offset > kMaxOffset - bytes || offset % cluster_bytes() != 0)
    return absl::StrCat(name, " offset invalid");
  return {};
}

std::string HeaderReader::table_words() const {
  const uint64_t refcount_clusters = field32(kRefcountTableClustersOffset);
  if (refcount_clusters == 0)
    return "Image does not contain a reference count table";
  std::string words =
      table("Reference count table", field64(kRefcountTableOffsetOffset),
            refcount_clusters * (cluster_bytes() / kRefcountTableEntryBytes),
            kRefcountTableEntryBytes, kMaxRefcountTableBytes);
  if (words.empty()) {
    words = table("Snapshot table", field64(kSnapshotsOffsetOffset),
                  field32(kSnapshotCountOffset), kSnapshotHeaderBytes,
                  kSnapshotHeaderBytes * kMaxSnapshotCount);
  }
  if (words.empty()) {
    words = table("Active L1 table", field64(kL1TableOffsetOffset),
                  field32(kL1SizeOffset), kL1EntryBytes, kMaxL1TableBytes);
  }
  if (!words.empty()) return words;
  const bool extended = (incompatible() & kIncompatibleExtendedL2) != 0;
  const uint64_t covered =
      cluster_bytes() / (extended ? 16 : 8) * cluster_bytes();
  if (field64(kSizeOffset) > UINT64_MAX - (covered - 1))
    return "Could not refresh total sector count: File too large";
  const uint64_t wanted = divide_round_up(field64(kSizeOffset), covered);
  if (wanted > INT32_MAX) return "Image is too big";
  if (field32(kL1SizeOffset) < wanted) return "L1 table is too small";
  return {};
}

std::string HeaderReader::words() const {
  std::string words = basic_words();
  if (words.empty()) words = feature_words();
  if (words.empty()) words = table_words();
  if (!words.empty()) return words;
  const uint64_t name_offset = field64(kBackingFileOffsetOffset);
  const uint64_t name_bytes = field32(kBackingFileSizeOffset);
  if (name_offset != 0 &&
      name_bytes > std::min<uint64_t>(kMaxBackingFilenameBytes,
                                      cluster_bytes() - name_offset)) {
    return "Backing file name too long";
  }
  return {};
}

}  // namespace

std::string unknown_feature_words(
    uint64_t unknown, absl::FunctionRef<std::string(int bit)> name_of) {
  std::string names;
  uint64_t nameless = 0;
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t mask = uint64_t{1} << bit;
    if ((unknown & mask) == 0) continue;
    const std::string name = name_of(bit);
    if (name.empty()) {
      nameless |= mask;
    } else {
      absl::StrAppend(&names, names.empty() ? "" : ", ", name);
    }
  }
  if (nameless != 0) {
    absl::StrAppend(
        &names, names.empty() ? "" : ", ",
        absl::StrFormat("Unknown incompatible feature: %x", nameless));
  }
  return absl::StrCat("Unsupported qcow2 feature(s): ", names);
}

std::string header_words(absl::Span<const uint8_t> head) {
  return HeaderReader(head).words();
}

}  // namespace spindle::qcow2

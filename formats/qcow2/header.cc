#include "formats/qcow2/header.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/header_words.h"

namespace spindle::qcow2 {
namespace {

// One table that the header points to.
struct Table {
  absl::string_view name;  // "L1 table"
  uint64_t offset;
  uint64_t length_bytes;
};

// "refcount table at offset 0x200 (512 bytes): why".
absl::Status bad_table(const Table& table, absl::string_view why) {
  return absl::DataLossError(
      absl::StrFormat("qcow2: %s at offset %#x (%d bytes): %s", table.name,
                      table.offset, table.length_bytes, why));
}

absl::Status bad_field(absl::string_view field, uint64_t value,
                       absl::string_view why) {
  return absl::DataLossError(
      absl::StrCat("qcow2: ", field, " is ", value, ": ", why));
}

absl::Status over_limit(absl::string_view field, uint64_t value,
                        uint64_t limit) {
  return bad_field(field, value, absl::StrCat("the limit is ", limit));
}

absl::Status check_magic_and_version(absl::Span<const uint8_t> head) {
  const uint32_t magic = load_big32(&head[kMagicOffset]);
  if (magic != kMagic) {
    return absl::InvalidArgumentError(
        absl::StrFormat("qcow2: magic is %#010x, not %#010x: not a qcow2 image",
                        magic, kMagic));
  }
  const uint32_t version = load_big32(&head[kVersionOffset]);
  if (version != kVersion2 && version != kVersion3) {
    return absl::UnimplementedError(absl::StrCat(
        "qcow2: version is ", version, "; versions 2 and 3 are supported"));
  }
  return absl::OkStatus();
}

// `head` as long as it should be: beyond the end of a file are zeroes.
std::vector<uint8_t> padded(absl::Span<const uint8_t> head, size_t length) {
  std::vector<uint8_t> bytes(head.begin(),
                             head.begin() + std::min(head.size(), length));
  bytes.resize(length);
  return bytes;
}

absl::StatusOr<uint32_t> parse_cluster_bits(absl::Span<const uint8_t> head) {
  const uint32_t cluster_bits = load_big32(&head[kClusterBitsOffset]);
  if (cluster_bits < kMinClusterBits || cluster_bits > kMaxClusterBits) {
    return bad_field(
        "cluster_bits", cluster_bits,
        absl::StrCat("must be ", kMinClusterBits, " to ", kMaxClusterBits));
  }
  return cluster_bits;
}

void parse_version2_features(Header* header) {
  header->refcount_order = kRefcountOrderOfVersion2;
  header->header_length = kVersion2HeaderBytes;
  header->compression_type = kCompressionZlib;
}

absl::Status check_compression_type(const Header& header) {
  const bool announced =
      (header.incompatible_features & kIncompatibleCompressionType) != 0;
  if (header.compression_type > kCompressionZstd) {
    return absl::UnimplementedError(absl::StrCat("qcow2: compression_type is ",
                                                 header.compression_type,
                                                 ", which is unknown"));
  }
  if (announced != (header.compression_type != kCompressionZlib)) {
    return bad_field(
        "compression_type", header.compression_type,
        announced ? "the incompatible feature bit 3 says that it is not zlib"
                  : "the incompatible feature bit 3 must be set for it");
  }
  return absl::OkStatus();
}

// Feature bits, and the fields that only version 3 has.
// REQUIRES: header->cluster_bits is valid.
absl::Status parse_version3_features(absl::Span<const uint8_t> head,
                                     Header* header) {
  header->incompatible_features =
      load_big64(&head[kIncompatibleFeaturesOffset]);
  header->compatible_features = load_big64(&head[kCompatibleFeaturesOffset]);
  header->autoclear_features = load_big64(&head[kAutoclearFeaturesOffset]);

  header->header_length = load_big32(&head[kHeaderLengthOffset]);
  const uint32_t length = header->header_length;
  if (length < kVersion3MinHeaderBytes) {
    return bad_field(
        "header_length", length,
        absl::StrCat("must be at least ", kVersion3MinHeaderBytes));
  }
  if (length > header->cluster_size_bytes()) {
    return over_limit("header_length", length, header->cluster_size_bytes());
  }

  header->refcount_order = load_big32(&head[kRefcountOrderOffset]);
  if (header->refcount_order > kMaxRefcountOrder) {
    return over_limit("refcount_order", header->refcount_order,
                      kMaxRefcountOrder);
  }
  if (header->extended_l2() &&
      header->cluster_bits < kMinExtendedL2ClusterBits) {
    return bad_field("cluster_bits", header->cluster_bits,
                     absl::StrCat("extended L2 entries need at least ",
                                  kMinExtendedL2ClusterBits));
  }

  header->compression_type = length > kCompressionTypeOffset
                                 ? head[kCompressionTypeOffset]
                                 : kCompressionZlib;
  if (length > kVersion3HeaderBytes) {
    header->unknown_fields.assign(head.begin() + kVersion3HeaderBytes,
                                  head.begin() + length);
  }
  return check_compression_type(*header);
}

absl::Status check_data_file(const Header& header) {
  if (header.has_data_file() || !header.data_file_is_raw())
    return absl::OkStatus();
  return bad_field("autoclear_features", header.autoclear_features,
                   "data-file-raw requires a data file");
}

void parse_common_fields(absl::Span<const uint8_t> head, Header* header) {
  header->backing_file_offset = load_big64(&head[kBackingFileOffsetOffset]);
  header->backing_file_size = load_big32(&head[kBackingFileSizeOffset]);
  header->size_bytes = load_big64(&head[kSizeOffset]);
  header->crypt_method = load_big32(&head[kCryptMethodOffset]);
  header->l1_entry_count = load_big32(&head[kL1SizeOffset]);
  header->l1_table_offset = load_big64(&head[kL1TableOffsetOffset]);
  header->refcount_table_offset = load_big64(&head[kRefcountTableOffsetOffset]);
  header->refcount_table_clusters =
      load_big32(&head[kRefcountTableClustersOffset]);
  header->snapshot_count = load_big32(&head[kSnapshotCountOffset]);
  header->snapshots_offset = load_big64(&head[kSnapshotsOffsetOffset]);
}

// A table stands on a cluster, and can be read.
absl::Status check_table_limits(const Header& header, const Table& table) {
  if (!is_aligned(table.offset, header.cluster_size_bytes()))
    return bad_table(table, "not aligned to the cluster size");
  const std::optional<uint64_t> end =
      checked_add(table.offset, table.length_bytes);
  const uint64_t limit =
      table.length_bytes == 0 ? kMaxSizeBytes : kMaxFileBytes;
  return end.has_value() && *end <= limit
             ? absl::OkStatus()
             : bad_table(table, "beyond what a file can have");
}

// It lies behind the header's own cluster and within the file; its last cluster
// may be cut short by the end of the file.
absl::Status check_table_place(const Header& header, const Table& table,
                               uint64_t file_length_bytes) {
  if (table.length_bytes == 0) return absl::OkStatus();
  if (table.offset == 0) return bad_table(table, "overlaps the header");
  const std::optional<uint64_t> file_end =
      checked_align_up(file_length_bytes, header.cluster_size_bytes());
  if (table.offset > kMaxHostOffset || !file_end.has_value() ||
      table.offset >= file_length_bytes ||
      table.offset + table.length_bytes > *file_end) {
    return bad_table(table, absl::StrCat("beyond the end of the file at ",
                                         file_length_bytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status check_l1_table(const Header& header) {
  if (header.size_bytes > kMaxSizeBytes) {
    return over_limit("size", header.size_bytes, kMaxSizeBytes);
  }
  constexpr uint64_t kMaxEntries = kMaxL1TableBytes / kL1EntryBytes;
  if (header.l1_entry_count > kMaxEntries) {
    return over_limit("l1_size", header.l1_entry_count, kMaxEntries);
  }
  const uint64_t needed =
      divide_round_up(header.size_bytes, header.l1_entry_coverage_bytes());
  if (header.l1_entry_count < needed) {
    return bad_field("l1_size", header.l1_entry_count,
                     absl::StrCat("an image of ", header.size_bytes,
                                  " bytes needs ", needed, " entries"));
  }
  return absl::OkStatus();
}

absl::Status check_refcount_table(const Header& header, TableChecks checks) {
  if (header.refcount_table_clusters == 0 && checks != TableChecks::kForCheck) {
    return bad_field("refcount_table_clusters", 0,
                     "the image has no refcount table");
  }
  const uint64_t max_clusters = kMaxRefcountTableBytes >> header.cluster_bits;
  if (header.refcount_table_clusters > max_clusters) {
    return over_limit("refcount_table_clusters", header.refcount_table_clusters,
                      max_clusters);
  }
  return absl::OkStatus();
}

absl::Status check_apart(const Table& a, const Table& b) {
  if (a.length_bytes == 0 || b.length_bytes == 0 ||
      !ByteRange{a.offset, a.length_bytes}.overlaps(
          {b.offset, b.length_bytes})) {
    return absl::OkStatus();
  }
  return bad_table(
      b, absl::StrFormat("overlaps the %s at offset %#x", a.name, a.offset));
}

// The snapshot table's entries vary in size; this is the least they take.
std::array<Table, 3> tables_of(const Header& header) {
  return {
      Table{"L1 table", header.l1_table_offset, header.l1_table_bytes()},
      Table{"refcount table", header.refcount_table_offset,
            header.refcount_table_bytes()},
      Table{"snapshot table", header.snapshots_offset,
            uint64_t{header.snapshot_count} * kMinSnapshotEntryBytes},
  };
}

absl::Status check_tables(const Header& header, TableChecks checks) {
  if (absl::Status status = check_l1_table(header); !status.ok()) return status;
  if (absl::Status status = check_refcount_table(header, checks); !status.ok())
    return status;
  const bool for_check = checks == TableChecks::kForCheck;
  if (header.snapshot_count > kMaxSnapshotCount && !for_check)
    return over_limit("nb_snapshots", header.snapshot_count, kMaxSnapshotCount);
  const std::array<Table, 3> tables = tables_of(header);
  for (const Table& table :
       absl::MakeConstSpan(tables).first(for_check ? 2 : 3)) {
    absl::Status status = check_table_limits(header, table);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Reads the name and returns where the extensions must end.  A name within the
// header's fields is odd, but a name.
absl::StatusOr<uint64_t> parse_backing_filename(absl::Span<const uint8_t> head,
                                                Header* header) {
  const uint64_t cluster_size = header->cluster_size_bytes();
  const uint64_t offset = header->backing_file_offset;
  const uint32_t size = header->backing_file_size;
  if (offset == 0) return cluster_size;
  if (offset > cluster_size) {
    return bad_field(
        "backing_file_offset", offset,
        absl::StrCat("must lie within the first cluster, ", cluster_size));
  }
  if (size > kMaxBackingFilenameBytes) {
    return over_limit("backing_file_size", size, kMaxBackingFilenameBytes);
  }
  if (size > cluster_size - offset) {
    return over_limit("backing_file_size", size, cluster_size - offset);
  }
  // A C string to other implementations: it ends at the first zero byte.
  const auto begin = head.begin() + static_cast<ptrdiff_t>(offset);
  header->backing_filename.assign(begin, std::find(begin, begin + size, 0));
  return offset;
}

absl::Status add_extension(HeaderExtension extension, Header* header) {
  if (extension.type == kExtensionDataFile &&
      extension.data.size() > kMaxDataFilenameBytes) {
    return over_limit("length of the data file's name", extension.data.size(),
                      kMaxDataFilenameBytes);
  }
  if (extension.type == kExtensionBitmaps &&
      extension.data.size() != kBitmapsExtensionBytes) {
    return with_qemu_words(
        bad_field("length of the bitmaps extension", extension.data.size(),
                  absl::StrCat("it must be ", kBitmapsExtensionBytes)),
        "bitmaps_ext: Invalid extension length");
  }
  if (extension.type != kExtensionBackingFormat) {
    header->extensions.push_back(std::move(extension));
    return absl::OkStatus();
  }
  if (extension.data.size() > kMaxBackingFormatBytes) {
    return with_qemu_words(
        over_limit("length of the backing format", extension.data.size(),
                   kMaxBackingFormatBytes),
        absl::StrCat("ERROR: ext_backing_format: len=", extension.data.size(),
                     " too large (>=", kMaxBackingFormatBytes + 1, ")"));
  }
  // A C string to other implementations: it ends at the first zero byte.
  header->backing_format = extension.data.substr(0, extension.data.find('\0'));
  return absl::OkStatus();
}

// Reads the extensions between the header and `end`.
absl::Status parse_extensions(absl::Span<const uint8_t> head, uint64_t end,
                              Header* header) {
  uint64_t offset = header->header_length;
  while (offset < end) {
    if (end - offset < kExtensionHeaderBytes) {
      return bad_field("offset of a header extension", offset,
                       absl::StrCat("extensions end at ", end));
    }
    const uint32_t type = load_big32(&head[offset]);
    const uint32_t length = load_big32(&head[offset + 4]);
    offset += kExtensionHeaderBytes;
    if (length > end - offset) {
      return with_qemu_words(
          bad_field(absl::StrFormat("length of header extension %#010x", type),
                    length, absl::StrCat(end - offset, " bytes are left")),
          "Header extension too large");
    }
    if (type == kExtensionEnd) return absl::OkStatus();
    absl::Status status = add_extension(
        {type,
         std::string(head.begin() + offset, head.begin() + offset + length)},
        header);
    if (!status.ok()) return status;
    offset += align_up(uint64_t{length}, kExtensionAlignment);
  }
  return absl::OkStatus();
}

void append_extension(uint32_t type, absl::string_view data,
                      std::vector<uint8_t>* out) {
  const size_t start = out->size();
  out->resize(start + kExtensionHeaderBytes +
              align_up(data.size(), kExtensionAlignment));
  store_big32(out->data() + start, type);
  store_big32(out->data() + start + 4, static_cast<uint32_t>(data.size()));
  std::copy(data.begin(), data.end(),
            out->data() + start + kExtensionHeaderBytes);
}

void store_common_fields(const Header& header, uint8_t* to) {
  store_big32(to + kMagicOffset, kMagic);
  store_big32(to + kVersionOffset, header.version);
  store_big32(to + kClusterBitsOffset, header.cluster_bits);
  store_big64(to + kSizeOffset, header.size_bytes);
  store_big32(to + kCryptMethodOffset, header.crypt_method);
  store_big32(to + kL1SizeOffset, header.l1_entry_count);
  store_big64(to + kL1TableOffsetOffset, header.l1_table_offset);
  store_big64(to + kRefcountTableOffsetOffset, header.refcount_table_offset);
  store_big32(to + kRefcountTableClustersOffset,
              header.refcount_table_clusters);
  store_big32(to + kSnapshotCountOffset, header.snapshot_count);
  store_big64(to + kSnapshotsOffsetOffset, header.snapshots_offset);
}

// A header of 104 bytes grows to the 112 that QEMU writes.
void append_version3_fields(const Header& header, std::vector<uint8_t>* out) {
  out->resize(kVersion3HeaderBytes);
  uint8_t* to = out->data();
  store_big64(to + kIncompatibleFeaturesOffset, header.incompatible_features);
  store_big64(to + kCompatibleFeaturesOffset, header.compatible_features);
  store_big64(to + kAutoclearFeaturesOffset, header.autoclear_features);
  store_big32(to + kRefcountOrderOffset, header.refcount_order);
  to[kCompressionTypeOffset] = header.compression_type;
  out->insert(out->end(), header.unknown_fields.begin(),
              header.unknown_fields.end());
  store_big32(out->data() + kHeaderLengthOffset,
              static_cast<uint32_t>(out->size()));
}

// As it stands in the header's own table; empty if it is not there.
std::string name_in_table(const Header& header, uint8_t type, uint32_t bit) {
  const HeaderExtension* table = header.find_extension(kExtensionFeatureNames);
  if (table == nullptr) return "";
  absl::string_view entries = table->data;
  for (; entries.size() >= kFeatureNameEntryBytes;
       entries.remove_prefix(kFeatureNameEntryBytes)) {
    if (static_cast<uint8_t>(entries[0]) != type ||
        static_cast<uint8_t>(entries[1]) != bit) {
      continue;
    }
    const absl::string_view field = entries.substr(2, kFeatureNameBytes);
    return std::string(field.substr(0, field.find('\0')));
  }
  return "";
}

absl::Status check_incompatible_features(const Header& header) {
  const uint64_t unknown = header.incompatible_features & ~kIncompatibleKnown;
  if (unknown == 0) return absl::OkStatus();
  std::string names;
  for (uint32_t bit = 0; bit < 64; ++bit) {
    if (((unknown >> bit) & 1) == 0) continue;
    absl::StrAppend(&names, names.empty() ? "" : ", ",
                    feature_name(header, kFeatureTypeIncompatible, bit));
  }
  return with_qemu_words(
      absl::UnimplementedError(absl::StrCat(
          "qcow2: the image uses unknown incompatible features: ", names)),
      unknown_feature_words(unknown, [&header](int bit) {
        return name_in_table(header, kFeatureTypeIncompatible,
                             static_cast<uint32_t>(bit));
      }));
}

absl::Status check_writable(const Header& header) {
  if (header.is_corrupt()) {
    return with_qemu_words(
        absl::UnimplementedError(
            "qcow2: the image is marked corrupt; it must be repaired before it "
            "is opened for writing"),
        "qcow2: Image is corrupt; cannot be opened read/write");
  }
  return absl::OkStatus();
}

}  // namespace

std::string Header::data_filename() const {
  const HeaderExtension* const name = find_extension(kExtensionDataFile);
  // A C string to other implementations.
  return name == nullptr ? "" : name->data.substr(0, name->data.find('\0'));
}

const HeaderExtension* Header::find_extension(uint32_t type) const {
  const auto found =
      std::find_if(extensions.begin(), extensions.end(),
                   [type](const HeaderExtension& e) { return e.type == type; });
  return found == extensions.end() ? nullptr : &*found;
}

bool looks_like_qcow2(absl::Span<const uint8_t> head) {
  if (head.size() < kVersion2HeaderBytes) return false;
  const uint32_t version = load_big32(&head[kVersionOffset]);
  // A version that is not known is for the driver to refuse: such an image must
  // not pass for raw.
  return load_big32(&head[kMagicOffset]) == kMagic && version >= kVersion2;
}

namespace {

absl::Status in_qemu_words(const absl::Status& status,
                           absl::Span<const uint8_t> head) {
  const std::string words = header_words(head);
  return words.empty() ? status : with_qemu_words(status, words);
}

absl::StatusOr<uint64_t> find_read_length(absl::Span<const uint8_t> head,
                                          uint64_t file_length_bytes) {
  const std::vector<uint8_t> fields = padded(head, kVersion2HeaderBytes);
  if (absl::Status status = check_magic_and_version(fields); !status.ok())
    return status;
  const absl::StatusOr<uint32_t> cluster_bits = parse_cluster_bits(fields);
  if (!cluster_bits.ok()) return cluster_bits.status();
  return std::min(uint64_t{1} << *cluster_bits, file_length_bytes);
}

absl::StatusOr<Header> parse(absl::Span<const uint8_t> bytes,
                             uint64_t file_length_bytes, TableChecks checks) {
  const absl::StatusOr<uint64_t> cluster =
      find_read_length(bytes, uint64_t{1} << kMaxClusterBits);
  if (!cluster.ok()) return cluster.status();
  const std::vector<uint8_t> padded_head = padded(bytes, *cluster);
  const absl::Span<const uint8_t> head(padded_head);

  Header header;
  header.version = load_big32(&head[kVersionOffset]);
  header.cluster_bits = load_big32(&head[kClusterBitsOffset]);
  if (header.version == kVersion2) {
    parse_version2_features(&header);
  } else {
    absl::Status features = parse_version3_features(head, &header);
    if (!features.ok()) return features;
  }
  parse_common_fields(head, &header);
  if (header.crypt_method > kCryptLuks) {
    return absl::UnimplementedError(absl::StrCat(
        "qcow2: crypt_method is ", header.crypt_method, ", which is unknown"));
  }
  absl::Status status = check_tables(header, checks);
  if (status.ok() && checks == TableChecks::kAll)
    status = check_table_places(header, file_length_bytes);
  if (!status.ok()) return status;

  const absl::StatusOr<uint64_t> extensions_end =
      parse_backing_filename(head, &header);
  if (!extensions_end.ok()) return extensions_end.status();
  status = parse_extensions(head, *extensions_end, &header);
  if (!status.ok()) return status;
  return header;
}

}  // namespace

absl::StatusOr<uint64_t> header_read_length(absl::Span<const uint8_t> head,
                                            uint64_t file_length_bytes) {
  absl::StatusOr<uint64_t> length = find_read_length(head, file_length_bytes);
  if (!length.ok()) return in_qemu_words(length.status(), head);
  return length;
}

absl::StatusOr<Header> parse_header(absl::Span<const uint8_t> head,
                                    uint64_t file_length_bytes,
                                    TableChecks checks) {
  absl::StatusOr<Header> header = parse(head, file_length_bytes, checks);
  if (!header.ok()) return in_qemu_words(header.status(), head);
  return header;
}

absl::Status check_table_places(const Header& header,
                                uint64_t file_length_bytes) {
  const std::array<Table, 3> tables = tables_of(header);
  for (const Table& table : tables) {
    absl::Status status = check_table_place(header, table, file_length_bytes);
    if (!status.ok()) return status;
  }
  for (size_t i = 0; i < tables.size(); ++i) {
    for (size_t j = i + 1; j < tables.size(); ++j) {
      absl::Status status = check_apart(tables[i], tables[j]);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::Status check_known(const Header& header) {
  absl::Status status = check_incompatible_features(header);
  return status.ok() ? check_data_file(header) : status;
}

absl::Status check_supported(const Header& header, bool read_only) {
  if (absl::Status status = check_known(header); !status.ok()) return status;
  return read_only ? absl::OkStatus() : check_writable(header);
}

std::string feature_name(const Header& header, uint8_t type, uint32_t bit) {
  std::string fallback = absl::StrCat("bit ", bit);
  const std::string name = name_in_table(header, type, bit);
  const bool printable = std::all_of(
      name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~'; });
  return printable && !name.empty() ? absl::StrCat(name, " (", fallback, ")")
                                    : fallback;
}

HeaderExtension default_feature_names() {
  struct Name {
    uint8_t type;
    uint8_t bit;
    absl::string_view name;
  };
  static constexpr Name kNames[] = {
      {kFeatureTypeIncompatible, 0, "dirty bit"},
      {kFeatureTypeIncompatible, 1, "corrupt bit"},
      {kFeatureTypeIncompatible, 2, "external data file"},
      {kFeatureTypeIncompatible, 3, "compression type"},
      {kFeatureTypeIncompatible, 4, "extended L2 entries"},
      {kFeatureTypeCompatible, 0, "lazy refcounts"},
      {kFeatureTypeAutoclear, 0, "bitmaps"},
      {kFeatureTypeAutoclear, 1, "raw external data"},
  };
  HeaderExtension table{kExtensionFeatureNames, {}};
  for (const Name& entry : kNames) {
    std::string packed;
    packed.push_back(static_cast<char>(entry.type));
    packed.push_back(static_cast<char>(entry.bit));
    packed.append(entry.name);
    packed.resize(kFeatureNameEntryBytes, '\0');
    table.data += packed;
  }
  return table;
}

absl::StatusOr<std::vector<uint8_t>> serialize_header(const Header& header) {
  std::vector<uint8_t> out(kVersion2HeaderBytes);
  store_common_fields(header, out.data());
  if (header.version == kVersion3) append_version3_fields(header, &out);
  if (!header.backing_format.empty()) {
    append_extension(kExtensionBackingFormat, header.backing_format, &out);
  }
  for (const HeaderExtension& extension : header.extensions) {
    append_extension(extension.type, extension.data, &out);
  }
  append_extension(kExtensionEnd, {}, &out);
  if (!header.backing_filename.empty()) {
    store_big64(out.data() + kBackingFileOffsetOffset, out.size());
    store_big32(out.data() + kBackingFileSizeOffset,
                static_cast<uint32_t>(header.backing_filename.size()));
    out.insert(out.end(), header.backing_filename.begin(),
               header.backing_filename.end());
  }
  if (out.size() > header.cluster_size_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "qcow2: header, extensions and backing file name take ", out.size(),
        " bytes; the first cluster has ", header.cluster_size_bytes()));
  }
  return out;
}

}  // namespace spindle::qcow2

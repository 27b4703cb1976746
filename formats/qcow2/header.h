// The qcow2 header as a plain struct: parsed, validated, serialised.  No I/O.
//
// Every number comes from an image and is hostile until parse_header() has
// accepted it: compared with a named limit and with the file's length, in
// checked arithmetic.  parse_header() accepts every valid header, also of
// images whose features Spindle cannot open (`info` shows them);
// check_supported() is the second gate, for opening.
//
// Thread safety: values and pure functions.
#ifndef SPINDLE_FORMATS_QCOW2_HEADER_H_
#define SPINDLE_FORMATS_QCOW2_HEADER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "formats/cluster/compression_type.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {

struct HeaderExtension {
  uint32_t type = 0;
  std::string data;
  bool operator==(const HeaderExtension&) const = default;
};

struct Header {
  uint32_t version = kVersion3;
  // Where the backing file's name stands; 0: none.  serialize_header() places
  // the name itself and ignores these two.
  uint64_t backing_file_offset = 0;
  uint32_t backing_file_size = 0;
  uint32_t cluster_bits = 16;
  uint64_t size_bytes = 0;
  uint32_t crypt_method = kCryptNone;
  uint32_t l1_entry_count = 0;
  uint64_t l1_table_offset = 0;  // 0 only if there are no entries
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t snapshot_count = 0;
  uint64_t snapshots_offset = 0;
  // Version 2 has none of these; they hold what it implies.
  uint64_t incompatible_features = 0;
  uint64_t compatible_features = 0;
  uint64_t autoclear_features = 0;
  uint32_t refcount_order = kRefcountOrderOfVersion2;
  uint32_t header_length = kVersion3HeaderBytes;
  uint8_t compression_type = kCompressionZlib;
  // Version 3: what follows the fields that are known here, up to
  // header_length; kept as it is.
  std::string unknown_fields;

  std::string backing_filename;  // empty: none
  std::string backing_format;    // empty: not stated
  // All other extensions in the order of the file, the feature name table
  // included, the end marker not.
  std::vector<HeaderExtension> extensions;

  uint64_t cluster_size_bytes() const { return uint64_t{1} << cluster_bits; }
  uint64_t l2_entry_size_bytes() const {
    return extended_l2() ? kExtendedL2EntryBytes : kL2EntryBytes;
  }
  // Entries in one L2 table.
  uint64_t l2_entry_count() const {
    return cluster_size_bytes() / l2_entry_size_bytes();
  }
  // Guest bytes that one L1 entry covers.
  uint64_t l1_entry_coverage_bytes() const {
    return l2_entry_count() << cluster_bits;
  }
  uint64_t l1_table_bytes() const {
    return uint64_t{l1_entry_count} * kL1EntryBytes;
  }
  uint32_t refcount_bits() const { return uint32_t{1} << refcount_order; }
  // Refcounts in one refcount block.
  uint64_t refcount_block_entry_count() const {
    return (cluster_size_bytes() * 8) >> refcount_order;
  }
  uint64_t refcount_table_bytes() const {
    return uint64_t{refcount_table_clusters} << cluster_bits;
  }
  uint64_t refcount_table_entry_count() const {
    return refcount_table_bytes() / kRefcountTableEntryBytes;
  }

  CompressionType compression() const {
    return CompressionType{compression_type};
  }

  bool is_dirty() const {
    return (incompatible_features & kIncompatibleDirty) != 0;
  }
  bool is_corrupt() const {
    return (incompatible_features & kIncompatibleCorrupt) != 0;
  }
  bool has_data_file() const {
    return (incompatible_features & kIncompatibleDataFile) != 0;
  }
  bool extended_l2() const {
    return (incompatible_features & kIncompatibleExtendedL2) != 0;
  }
  bool lazy_refcounts() const {
    return (compatible_features & kCompatibleLazyRefcounts) != 0;
  }

  // Guest data live in another file, which reads as the guest's disk by itself.
  bool data_file_is_raw() const {
    return (autoclear_features & kAutoclearDataFileRaw) != 0;
  }
  // That file's name, as it stands in the image; empty: not stated.
  std::string data_filename() const;

  // Null if there is none of that type.
  const HeaderExtension* find_extension(uint32_t type) const;

  bool operator==(const Header&) const = default;
};

// True if `head` begins with the magic and a version from 2 on; those after 3
// do not exist yet.
bool looks_like_qcow2(absl::Span<const uint8_t> head);

// How many bytes from the start of the file parse_header() wants to see: the
// first cluster, or the whole file if that is shorter.  `head` needs to hold
// the first kVersion2HeaderBytes, or the whole file.
// Errors: those of parse_header() up to and including cluster_bits.
absl::StatusOr<uint64_t> header_read_length(absl::Span<const uint8_t> head,
                                            uint64_t file_length_bytes);

// How much of the header's tables must be right.
enum class TableChecks {
  // What a writer relies on: each lies within the file (its last cluster may be
  // cut short by the end), apart from the header and from the others.
  kAll,
  // Limits of their numbers.  Beyond the end of the file they read as zeroes,
  // and where they overlap, nobody writes to either.
  kForReading,
  // The same, and nothing of the snapshot table, and there may be no refcount
  // table: for a check, which finds out the rest itself.
  kForCheck,
};

// Parses and validates.  `head` is the beginning of the file, with at least
// header_read_length() bytes; what the first cluster has beyond it reads as
// zeroes.
// Errors: kInvalidArgument if it is not a qcow2 image, kUnimplemented for an
// unknown version, kDataLoss for a damaged header.
absl::StatusOr<Header> parse_header(absl::Span<const uint8_t> head,
                                    uint64_t file_length_bytes,
                                    TableChecks checks = TableChecks::kAll);

// What TableChecks::kAll demands beyond kForReading, of a header that was
// parsed with that.
absl::Status check_table_places(const Header& header,
                                uint64_t file_length_bytes);

// Refuses, by name and with kUnimplemented, an image that uses a feature which
// is not known at all: not even its structure is.  kDataLoss for features that
// contradict each other.
absl::Status check_known(const Header& header);

// Refuses, by name and with kUnimplemented, an image that uses a feature which
// Spindle does not have; for writing also an image that must be repaired first.
absl::Status check_supported(const Header& header, bool read_only);

// What the feature name table says about bit `bit` of the features of `type`
// (kFeatureType...), or "bit N".  Names are printable ASCII.
std::string feature_name(const Header& header, uint8_t type, uint32_t bit);

// The feature name table that QEMU 7.2 writes, as an extension.
HeaderExtension default_feature_names();

// Header, extensions and backing file name as QEMU lays them out: the backing
// format, the other extensions in order, the end marker, the name.  Shorter
// than a cluster: whoever rewrites a header pads it with zeroes to one.
// Errors: kResourceExhausted if it does not fit into the first cluster.
absl::StatusOr<std::vector<uint8_t>> serialize_header(const Header& header);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_HEADER_H_

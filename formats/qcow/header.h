// The qcow header as a plain struct: parsed, validated, serialised.  No I/O but
// read_header()'s.
//
// Every number comes from an image and is hostile until parse_header() has
// accepted it: compared with a named limit and with the file's length, in
// checked arithmetic.
//
// Thread safety: values and functions without state.
#ifndef SPINDLE_FORMATS_QCOW_HEADER_H_
#define SPINDLE_FORMATS_QCOW_HEADER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/byte_channel.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "formats/qcow/layout.h"

namespace spindle::qcow {

struct Header {
  uint64_t backing_file_offset = 0;  // 0: no backing file
  uint32_t backing_file_size = 0;    // of its name, in bytes
  uint32_t modification_time = 0;    // of the backing file; nobody asks for it
  uint64_t size_bytes = 0;           // as it is stated
  uint32_t cluster_bits = 12;
  uint32_t l2_bits = 9;
  uint32_t crypt_method = kCryptNone;
  uint64_t l1_table_offset = 0;

  std::string backing_filename;  // empty: none

  // What a guest sees: whole sectors.
  uint64_t disk_bytes() const {
    return align_down(size_bytes, kSectorSizeBytes);
  }
  uint64_t cluster_size_bytes() const { return uint64_t{1} << cluster_bits; }
  uint64_t l2_table_bytes() const { return kL2EntryBytes << l2_bits; }
  // Guest bytes that one L1 entry covers.
  uint64_t l1_entry_coverage_bytes() const {
    return uint64_t{1} << (cluster_bits + l2_bits);
  }
  uint64_t l1_entry_count() const {
    return divide_round_up(size_bytes, l1_entry_coverage_bytes());
  }
  uint64_t l1_table_bytes() const {
    return l1_entry_count() * sizeof(uint64_t);
  }
  bool is_encrypted() const { return crypt_method != kCryptNone; }
};

// True if `head` begins a qcow image, version 1.
bool looks_like_qcow(absl::Span<const uint8_t> head);

// The header in `head`, the first bytes of a file of `file_bytes` bytes; all of
// it but the backing file's name.
// Errors: kInvalidArgument if it is not a qcow image; kUnimplemented for
// another version or encryption; kDataLoss for a damaged header.  The message
// names field, value and limit.
absl::StatusOr<Header> parse_header(absl::Span<const uint8_t> head,
                                    uint64_t file_bytes);

// The same, from the file, with the name.
absl::StatusOr<Header> read_header(ByteChannel* file);

// The header and, behind it, the name; offsets and sizes as they stand in
// `header`.
std::vector<uint8_t> serialize_header(const Header& header);

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_HEADER_H_

// The bytes of qcow images, in shapes that no tool makes, too.
//
// Thread safety: pure functions.
#ifndef SPINDLE_TESTS_FORMATS_QCOW_QCOW_BYTES_H_
#define SPINDLE_TESTS_FORMATS_QCOW_QCOW_BYTES_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace spindle::testing {

struct QcowShape {
  uint64_t size_bytes = uint64_t{1} << 20;
  uint32_t cluster_bits = 12;
  uint32_t l2_bits = 9;
  uint32_t crypt_method = 0;
  std::string backing_filename = {};
};

// A new, empty image.
std::string new_qcow(const QcowShape& shape = {});

// The same with one L2 table, right behind the L1 table on a cluster, that has
// these entries; the file ends with it, at a multiple of the cluster size.
std::string qcow_with_entries(const QcowShape& shape,
                              std::initializer_list<uint64_t> entries);

// Where that table is.
uint64_t first_table_offset(const QcowShape& shape);

// Puts a big-endian number, or bytes, into an image that becomes as long as it
// must be.
void put64(std::string* image, uint64_t offset, uint64_t value);
void put_bytes(std::string* image, uint64_t offset, absl::string_view bytes);
uint64_t get64(absl::string_view image, uint64_t offset);

// Raw deflate, as in a compressed cluster.
std::string deflated(absl::string_view cluster);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW_QCOW_BYTES_H_

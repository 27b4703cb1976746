// ImageAnatomy: where the structures of a sound image lie, found without the
// code that is tested.
//
// Thread safety: values.
#ifndef SPINDLE_TESTS_DAMAGED_IMAGE_ANATOMY_H_
#define SPINDLE_TESTS_DAMAGED_IMAGE_ANATOMY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/damaged/base_image.h"

namespace spindle::testing {

// A number in the image.
struct Field {
  std::string name;
  uint64_t offset = 0;
  uint32_t width = 8;  // bytes
};

class ImageAnatomy {
 public:
  // `bytes` must outlive this.
  explicit ImageAnatomy(const Bytes& bytes);

  uint64_t load(const Field& field) const;
  uint64_t load64(uint64_t offset) const { return load({"", offset, 8}); }
  uint64_t load32(uint64_t offset) const { return load({"", offset, 4}); }
  uint64_t file_bytes() const { return bytes_.size(); }

  uint32_t version = 0;
  uint64_t cluster_bytes = 0;
  uint32_t refcount_bits = 16;
  bool extended_l2 = false;
  uint64_t header_bytes = 72;
  uint64_t l1_table = 0;
  uint64_t l1_entries = 0;
  uint64_t refcount_table = 0;
  std::vector<uint64_t> refcount_blocks;
  std::vector<uint64_t> l2_tables;  // active ones
  // The snapshot table's entries, and their L1 tables.
  std::vector<uint64_t> snapshots;
  std::vector<uint64_t> snapshot_l1_tables;
  // Entries of the bitmap directory, and the tables that they name.
  std::vector<uint64_t> bitmaps;
  std::vector<uint64_t> bitmap_tables;
  struct Extension {
    uint32_t type = 0;
    uint64_t offset = 0;  // of its type
    uint64_t length = 0;  // of its data
  };
  // The end marker is the last.
  std::vector<Extension> extensions;

  uint64_t l2_entry_bytes() const { return extended_l2 ? 16 : 8; }
  // The first L2 entry of each kind, by its name: "standard", "compressed",
  // "zero", "zero with a place", "nothing"; and one in the last table.
  std::vector<Field> l2_entries() const;
  // Where the first data cluster lies.
  uint64_t data_cluster() const;

 private:
  void find_refcount_blocks();
  void find_l2_tables();
  void find_snapshots();
  void find_extensions();
  void find_bitmaps(uint64_t extension_data);

  const Bytes& bytes_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DAMAGED_IMAGE_ANATOMY_H_

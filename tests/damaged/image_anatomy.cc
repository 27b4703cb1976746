#include "tests/damaged/image_anatomy.h"

#include <algorithm>
#include <string>

namespace spindle::testing {
namespace {

constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
constexpr uint64_t kCompressed = uint64_t{1} << 62;
constexpr uint32_t kBitmapsExtension = 0x23852875;

uint64_t align8(uint64_t value) { return (value + 7) & ~uint64_t{7}; }

}  // namespace

ImageAnatomy::ImageAnatomy(const Bytes& bytes) : bytes_(bytes) {
  version = static_cast<uint32_t>(load32(4));
  cluster_bytes = uint64_t{1} << load32(20);
  if (version >= 3) {
    extended_l2 = ((load64(72) >> 4) & 1) != 0;
    refcount_bits = 1u << load32(96);
    header_bytes = load32(100);
  }
  l1_entries = load32(36);
  l1_table = load64(40);
  refcount_table = load64(48);
  find_refcount_blocks();
  find_l2_tables();
  find_snapshots();
  find_extensions();
}

uint64_t ImageAnatomy::load(const Field& field) const {
  uint64_t value = 0;
  for (uint64_t i = field.offset; i < field.offset + field.width; ++i)
    value = value << 8 | (i < bytes_.size() ? bytes_[i] : 0);
  return value;
}

void ImageAnatomy::find_refcount_blocks() {
  const uint64_t entries = load32(56) * cluster_bytes / 8;
  for (uint64_t i = 0; i < entries; ++i) {
    if (const uint64_t block = load64(refcount_table + 8 * i); block != 0)
      refcount_blocks.push_back(block);
  }
}

void ImageAnatomy::find_l2_tables() {
  for (uint64_t i = 0; i < l1_entries; ++i) {
    const uint64_t table = load64(l1_table + 8 * i) & kOffsetMask;
    if (table != 0) l2_tables.push_back(table);
  }
}

void ImageAnatomy::find_snapshots() {
  uint64_t at = load64(64);
  for (uint64_t i = load32(60); i > 0; --i) {
    snapshots.push_back(at);
    snapshot_l1_tables.push_back(load64(at));
    at = align8(at + 40 + load32(at + 36) + load({"", at + 12, 2}) +
                load({"", at + 14, 2}));
  }
}

void ImageAnatomy::find_extensions() {
  for (uint64_t at = header_bytes;;) {
    extensions.push_back(
        {static_cast<uint32_t>(load32(at)), at, load32(at + 4)});
    const Extension& extension = extensions.back();
    if (extension.type == 0) return;
    if (extension.type == kBitmapsExtension) find_bitmaps(at + 8);
    at = align8(at + 8 + extension.length);
  }
}

void ImageAnatomy::find_bitmaps(uint64_t extension_data) {
  uint64_t at = load64(extension_data + 16);
  for (uint64_t i = load32(extension_data); i > 0; --i) {
    bitmaps.push_back(at);
    bitmap_tables.push_back(load64(at));
    at = align8(at + 24 + load32(at + 20) + load({"", at + 18, 2}));
  }
}

std::vector<Field> ImageAnatomy::l2_entries() const {
  std::vector<Field> found;
  const auto kind_of = [this](uint64_t at) -> std::string {
    const uint64_t entry = load64(at);
    const bool zero =
        extended_l2 ? load64(at + 8) >> 32 != 0 : (entry & 1) != 0;
    if ((entry & kCompressed) != 0) return "compressed";
    if ((entry & kOffsetMask) == 0) return zero ? "zero" : "nothing";
    return zero ? "zero with a place" : "standard";
  };
  for (const uint64_t table : l2_tables) {
    for (uint64_t at = table; at < table + cluster_bytes;
         at += l2_entry_bytes()) {
      const std::string name = kind_of(at);
      const bool known =
          std::any_of(found.begin(), found.end(),
                      [&](const Field& field) { return field.name == name; });
      if (!known) found.push_back({name, at, 8});
    }
  }
  return found;
}

uint64_t ImageAnatomy::data_cluster() const {
  for (const Field& entry : l2_entries()) {
    if (entry.name == "standard") return load(entry) & kOffsetMask;
  }
  return 0;
}

}  // namespace spindle::testing

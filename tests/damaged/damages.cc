#include "tests/damaged/damages.h"

#include <algorithm>
#include <functional>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/damaged/image_anatomy.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
constexpr uint64_t kCopied = uint64_t{1} << 63;
constexpr uint64_t kCompressed = uint64_t{1} << 62;

Bytes big_endian(uint64_t value, uint32_t width) {
  Bytes bytes(width);
  for (uint32_t i = 0; i < width; ++i)
    bytes[width - 1 - i] = static_cast<uint8_t>(value >> (8 * i));
  return bytes;
}

class Generator {
 public:
  explicit Generator(const BaseImage& base)
      : base_(base), anatomy_(base.bytes) {}

  std::vector<Damage> run();

 private:
  using Values = std::vector<uint64_t>;

  void add(Damage damage);
  void set(const Field& field, uint64_t value);
  void set_each(const Field& field, const Values& values) {
    for (const uint64_t value : values) set(field, value);
  }
  // Around what it is, and at the ends of what it can hold.
  void number(const Field& field);
  // Where something could seem to lie.
  Values places() const;
  // An entry whose offset goes elsewhere and whose flags flip.
  void entry(const Field& field);
  void flip_bits(const Field& field, std::initializer_list<uint32_t> bits);

  void header();
  void features();
  void extensions();
  void extensions_that_are_new();
  void l1_table();
  void l2_tables();
  void compressed(const Field& field);
  void subclusters(const Field& entry);
  void refcounts();
  void snapshots();
  void bitmaps();
  void lengths();

  const BaseImage& base_;
  const ImageAnatomy anatomy_;
  std::vector<Damage> damages_;
  std::set<size_t> known_;  // hashes
};

void Generator::add(Damage damage) {
  const Bytes bytes = damaged_by(damage, base_.bytes);
  const std::string_view view(reinterpret_cast<const char*>(bytes.data()),
                              bytes.size());
  if (known_.insert(std::hash<std::string_view>()(view)).second)
    damages_.push_back(std::move(damage));
}

void Generator::set(const Field& field, uint64_t value) {
  if (field.width < 8) value &= (uint64_t{1} << (8 * field.width)) - 1;
  add({absl::StrFormat("%s: %#x -> %#x", field.name, anatomy_.load(field),
                       value),
       {{field.offset, big_endian(value, field.width)}},
       std::nullopt});
}

void Generator::number(const Field& field) {
  const uint64_t is = anatomy_.load(field);
  const uint64_t top = uint64_t{1} << (8 * field.width - 1);
  set_each(field, {0, 1, is - 1, is + 1, is + 8, is * 2, is + 64, top - 1, top,
                   ~uint64_t{0}});
}

std::vector<uint64_t> Generator::places() const {
  const uint64_t cluster = anatomy_.cluster_bytes;
  const uint64_t end =
      (anatomy_.file_bytes() + cluster - 1) / cluster * cluster;
  Values values = {0,
                   512,
                   cluster,
                   anatomy_.l1_table,
                   anatomy_.refcount_table,
                   anatomy_.refcount_blocks[0],
                   anatomy_.l2_tables[0],
                   anatomy_.data_cluster(),
                   anatomy_.data_cluster() + 512,
                   end - cluster,
                   end,
                   end + cluster,
                   end + (cluster << 10),
                   uint64_t{1} << 40,
                   (uint64_t{1} << 56) - cluster};
  if (!anatomy_.snapshots.empty()) values.push_back(anatomy_.snapshots[0]);
  if (!anatomy_.bitmaps.empty()) {
    values.push_back(anatomy_.bitmaps[0]);
    values.push_back(anatomy_.bitmap_tables[0]);
  }
  return values;
}

void Generator::entry(const Field& field) {
  const uint64_t is = anatomy_.load(field);
  for (const uint64_t place : places())
    set(field, (is & ~kOffsetMask) | (place & kOffsetMask));
  set(field, is + 512);
  set(field, 0);
  set(field, ~uint64_t{0});
  flip_bits(field, {0, 1, 8, 55, 56, 61, 62, 63});
}

void Generator::flip_bits(const Field& field,
                          std::initializer_list<uint32_t> bits) {
  for (const uint32_t bit : bits)
    set(field, anatomy_.load(field) ^ (uint64_t{1} << bit));
}

// ---- The header -------------------------------------------------------------

void Generator::header() {
  for (const Field& field : std::initializer_list<Field>{
           {"backing_file_offset", 8, 8},
           {"backing_file_size", 16, 4},
           {"cluster_bits", 20, 4},
           {"size", 24, 8},
           {"l1_size", 36, 4},
           {"l1_table_offset", 40, 8},
           {"refcount_table_offset", 48, 8},
           {"refcount_table_clusters", 56, 4},
           {"nb_snapshots", 60, 4},
           {"snapshots_offset", 64, 8},
       }) {
    number(field);
    if (field.width != 8 || field.name == "size") continue;
    set_each(field, places());
    const uint64_t cluster = anatomy_.cluster_bytes;
    set_each(field,
             {uint64_t{1} << 56, uint64_t{1} << 62,
              (uint64_t{1} << 63) - cluster, (uint64_t{1} << 63) - 64 * cluster,
              uint64_t{1} << 63, ~uint64_t{0} - cluster + 1});
  }
  set_each({"magic", 0, 4}, {0, 0x514649fa});
  set_each({"version", 4, 4}, {0, 1, 2, 3, 4, 0x80000003});
  set_each({"cluster_bits", 20, 4}, {8, 9, 12, 14, 16, 21, 22, 31, 32, 64});
  set_each({"crypt_method", 32, 4}, {3, 0x80000000});
  const uint64_t size = anatomy_.load64(24);
  set_each({"size", 24, 8},
           {511, 512, 1000, size - 512, size + 1, size + 511, size + 512,
            size * 64, uint64_t{1} << 40, uint64_t{1} << 60,
            (uint64_t{1} << 63) - 512, (uint64_t{1} << 63) - 511});
  set_each({"backing_file_size", 16, 4}, {1023, 1024, 4095});
  set_each({"backing_file_offset", 8, 8}, {72, 104, anatomy_.header_bytes, 200,
                                           1000, anatomy_.cluster_bytes - 8});
  set_each({"l1_size", 36, 4}, {4194304, 4194305});
  set_each({"nb_snapshots", 60, 4}, {65536, 65537});
}

void Generator::features() {
  if (anatomy_.version < 3) return;
  flip_bits({"incompatible features", 72, 8}, {0, 1, 2, 3, 4, 5, 40, 63});
  flip_bits({"compatible features", 80, 8}, {0, 1, 63});
  flip_bits({"autoclear features", 88, 8}, {0, 1, 2, 63});
  number({"refcount_order", 96, 4});
  set_each({"refcount_order", 96, 4}, {2, 3, 4, 5, 6, 7, 32});
  number({"header_length", 100, 4});
  const uint64_t cluster = anatomy_.cluster_bytes;
  set_each({"header_length", 100, 4},
           {71, 72, 100, 103, 104, 105, 107, 109, 111, 113, 116, 120, 121, 128,
            cluster - 8, cluster - 1, cluster, cluster + 1});
  set_each({"compression_type", 104, 1}, {0, 1, 2, 255});
  set_each({"what pads the compression type", 105, 1}, {1, 255});
  // The announced type that is none, and the other way round.
  add({"compression type bit and 1",
       {{72 + 7, {static_cast<uint8_t>(anatomy_.load64(72) ^ 8)}},
        {104, {static_cast<uint8_t>(base_.bytes[104] ^ 1)}}},
       std::nullopt});
  add({"header of 104 bytes with the compression type bit",
       {{72 + 7, {static_cast<uint8_t>(anatomy_.load64(72) | 8)}},
        {100, big_endian(104, 4)}},
       std::nullopt});
}

void Generator::extensions() {
  for (const ImageAnatomy::Extension& extension : anatomy_.extensions) {
    const std::string name = absl::StrFormat("extension %#x", extension.type);
    set_each(
        {name + " type", extension.offset, 4},
        {0, 1, 0xe2792aca, 0x6803f857, 0x23852875, 0x44415441, 0x12345678});
    const Field length{name + " length", extension.offset + 4, 4};
    number(length);
    set_each(length, {8, 15, 16, 24, 100, 1000, 4096, 65536});
    if (extension.length == 0) continue;
    const Field first{name + " data", extension.offset + 8, 1};
    set_each(first, {0, 0x40, 0xff});
  }
}

// In front of all others, which move on; what is behind the new end is
// overwritten only where a sound image has zeroes.
void Generator::extensions_that_are_new() {
  const ImageAnatomy::Extension& last = anatomy_.extensions.back();
  const auto insert = [&](const std::string& name, uint32_t type,
                          const Bytes& data) {
    Damage damage{absl::StrFormat("new extension %#x: %s", type, name), {}, {}};
    Bytes bytes = big_endian(type, 4);
    const Bytes length = big_endian(data.size(), 4);
    bytes.insert(bytes.end(), length.begin(), length.end());
    bytes.insert(bytes.end(), data.begin(), data.end());
    bytes.resize((bytes.size() + 7) / 8 * 8);
    const auto begin = base_.bytes.begin();
    bytes.insert(bytes.end(),
                 begin + static_cast<ptrdiff_t>(anatomy_.header_bytes),
                 begin + static_cast<ptrdiff_t>(last.offset + 8));
    // Where the name of the backing file stands, it would be lost.
    const bool has_backing = anatomy_.load64(8) != 0;
    if (has_backing ||
        anatomy_.header_bytes + bytes.size() > anatomy_.cluster_bytes)
      return;
    damage.patches.push_back({anatomy_.header_bytes, bytes});
    add(std::move(damage));
  };
  insert("unknown", 0x12345678, Bytes(20, 7));
  insert("raw", 0xe2792aca, {'r', 'a', 'w'});
  insert("of 15 bytes", 0xe2792aca, Bytes(15, 'x'));
  insert("of 16 bytes", 0xe2792aca, Bytes(16, 'x'));
  insert("of 40 bytes", 0x6803f857, Bytes(40, 'x'));
  insert("a name", 0x44415441, {'/', 'n', 'o', 'n', 'e'});
  insert("no name", 0x44415441, {});
  Bytes bitmaps(24);
  insert("all zero", 0x23852875, bitmaps);
  bitmaps[3] = 1;
  insert("one at 0", 0x23852875, bitmaps);
  insert("short", 0x23852875, Bytes(16, 0));
  insert("long", 0x23852875, Bytes(32, 0));
  insert("all zero", 0x0537be77, Bytes(16, 0));
  insert("short", 0x0537be77, Bytes(8, 0));
}

// ---- L1 and L2 tables -------------------------------------------------------

void Generator::l1_table() {
  for (const uint64_t index : {uint64_t{0}, anatomy_.l1_entries - 1}) {
    entry({absl::StrCat("L1 entry ", index), anatomy_.l1_table + 8 * index, 8});
  }
  for (const uint64_t table : anatomy_.snapshot_l1_tables)
    entry({absl::StrFormat("L1 entry 0 of the snapshot's at %#x", table), table,
           8});
}

void Generator::l2_tables() {
  for (Field field : anatomy_.l2_entries()) {
    field.name = absl::StrCat("L2 entry, ", field.name);
    entry(field);
    compressed(field);
    if (anatomy_.extended_l2) subclusters(field);
  }
}

void Generator::compressed(const Field& field) {
  // The host offset has so many bits.
  uint32_t bits = 62 + 8;
  for (uint64_t c = anatomy_.cluster_bytes; c > 1; c /= 2) --bits;
  const uint64_t offset_mask = (uint64_t{1} << bits) - 1;
  const uint64_t data = anatomy_.data_cluster();
  const uint64_t is = anatomy_.load(field);
  const uint64_t offset = (is & kCompressed) != 0 ? is & offset_mask : data;
  const uint64_t sectors =
      (is & kCompressed) != 0 ? (is & ~kCompressed) >> bits : 0;
  const uint64_t most = (uint64_t{1} << (62 - bits)) - 1;
  const auto descriptor = [&](uint64_t at, uint64_t count) {
    return kCompressed | (at & offset_mask) | (count & most) << bits;
  };
  set_each(field,
           {descriptor(offset, 0), descriptor(offset, most),
            descriptor(offset, sectors + 1), descriptor(offset, sectors - 1),
            descriptor(offset + 1, sectors), descriptor(offset + 512, sectors),
            descriptor(0, 0), descriptor(anatomy_.l1_table, most),
            descriptor(anatomy_.file_bytes() - 1, 0),
            descriptor(anatomy_.file_bytes(), most),
            descriptor(offset_mask, most), descriptor(uint64_t{1} << 50, 3),
            descriptor(offset, sectors) | kCopied});
}

void Generator::subclusters(const Field& entry) {
  const Field bitmap{entry.name + ", subclusters", entry.offset + 8, 8};
  set_each(bitmap, {0, 1, uint64_t{1} << 32, 0x80000000, uint64_t{1} << 63,
                    0xffffffff, 0xffffffff00000000, 0x0000ffff, 0xffff0000ffff,
                    0x00000001ffffffff, ~uint64_t{0}});
}

// ---- Refcounts --------------------------------------------------------------

void Generator::refcounts() {
  entry({"refcount table entry 0", anatomy_.refcount_table, 8});
  entry({"refcount table entry 1", anatomy_.refcount_table + 8, 8});
  const uint64_t last = anatomy_.load32(56) * anatomy_.cluster_bytes / 8 - 1;
  set_each({"last refcount table entry", anatomy_.refcount_table + 8 * last, 8},
           {anatomy_.refcount_blocks[0], anatomy_.data_cluster(),
            uint64_t{1} << 40, 512});
  const uint64_t block = anatomy_.refcount_blocks[0];
  const uint64_t per_block =
      anatomy_.cluster_bytes * 8 / anatomy_.refcount_bits;
  struct Named {
    std::string name;
    uint64_t offset;
  };
  std::vector<Named> clusters = {
      {"the header", 0},
      {"the L1 table", anatomy_.l1_table},
      {"the refcount table", anatomy_.refcount_table},
      {"the refcount block", block},
      {"an L2 table", anatomy_.l2_tables[0]},
      {"the cluster behind the end", anatomy_.file_bytes()},
      {"a data cluster", anatomy_.data_cluster()}};
  if (!anatomy_.snapshots.empty())
    clusters.push_back({"the snapshot table", anatomy_.snapshots[0]});
  for (const Named& named : clusters) {
    const uint64_t cluster = named.offset / anatomy_.cluster_bytes;
    if (cluster >= per_block) continue;
    const Field field{absl::StrCat("refcount of ", named.name),
                      block + cluster * anatomy_.refcount_bits / 8,
                      std::max(1u, anatomy_.refcount_bits / 8)};
    const uint64_t is = anatomy_.load(field);
    set_each(field, {0, is - 1, is + 1, is + 2, ~uint64_t{0}});
  }
}

// ---- Snapshots and bitmaps --------------------------------------------------

void Generator::snapshots() {
  for (size_t i = 0; i < anatomy_.snapshots.size(); ++i) {
    const uint64_t at = anatomy_.snapshots[i];
    const std::string name = absl::StrCat("snapshot ", i, " ");
    const Field l1{name + "L1 offset", at, 8};
    number(l1);
    set_each(l1, places());
    set_each(l1, {uint64_t{1} << 62, (uint64_t{1} << 63) - 512});
    const Field l1_size{name + "L1 size", at + 8, 4};
    number(l1_size);
    set_each(l1_size, {4194304, 4194305});
    for (const Field& field : std::initializer_list<Field>{
             {name + "id size", at + 12, 2},
             {name + "name size", at + 14, 2},
             {name + "seconds", at + 16, 4},
             {name + "nanoseconds", at + 20, 4},
             {name + "VM clock", at + 24, 8},
             {name + "VM state size", at + 32, 4},
             {name + "extra size", at + 36, 4},
             {name + "extra VM state size", at + 40, 8},
             {name + "extra disk size", at + 48, 8},
             {name + "extra icount", at + 56, 8},
         }) {
      number(field);
    }
    set_each({name + "extra size", at + 36, 4}, {8, 16, 24, 1024, 1025, 4096});
    set_each({name + "name", at + 40 + anatomy_.load32(at + 36), 2},
             {0, 0xffff});
  }
}

void Generator::bitmaps() {
  for (const ImageAnatomy::Extension& extension : anatomy_.extensions) {
    if (extension.type != 0x23852875) continue;
    const uint64_t at = extension.offset + 8;
    number({"number of bitmaps", at, 4});
    set_each({"number of bitmaps", at, 4}, {3, 65535, 65536});
    number({"reserved field of the bitmaps extension", at + 4, 4});
    number({"size of the bitmap directory", at + 8, 8});
    const Field offset{"offset of the bitmap directory", at + 16, 8};
    number(offset);
    set_each(offset, places());
  }
  for (size_t i = 0; i < anatomy_.bitmaps.size(); ++i) {
    const uint64_t at = anatomy_.bitmaps[i];
    const std::string name = absl::StrCat("bitmap ", i, " ");
    const Field table{name + "table offset", at, 8};
    number(table);
    set_each(table, places());
    number({name + "table size", at + 8, 4});
    flip_bits({name + "flags", at + 12, 4}, {0, 1, 2, 3, 31});
    set_each({name + "type", at + 16, 1}, {0, 2, 255});
    set_each({name + "granularity", at + 17, 1},
             {0, 8, 9, 15, 31, 32, 63, 64, 255});
    number({name + "name size", at + 18, 2});
    number({name + "extra size", at + 20, 4});
    set_each({name + "name", at + 24, 1}, {0, 0xff});
    entry({name + "table entry 0", anatomy_.bitmap_tables[i], 8});
  }
}

// ---- The file ---------------------------------------------------------------

void Generator::lengths() {
  const uint64_t file = anatomy_.file_bytes();
  const uint64_t cluster = anatomy_.cluster_bytes;
  for (const uint64_t length : {uint64_t{0},
                                uint64_t{4},
                                uint64_t{71},
                                uint64_t{72},
                                uint64_t{100},
                                uint64_t{104},
                                uint64_t{111},
                                uint64_t{200},
                                uint64_t{512},
                                cluster - 1,
                                cluster,
                                cluster + 1,
                                anatomy_.refcount_table + 8,
                                anatomy_.refcount_blocks[0],
                                anatomy_.refcount_blocks[0] + 100,
                                anatomy_.l1_table + 8,
                                anatomy_.l2_tables[0],
                                anatomy_.l2_tables[0] + 8,
                                anatomy_.data_cluster() + 512,
                                file / 2,
                                file - 2 * cluster,
                                file - cluster,
                                file - 512,
                                file - 1,
                                file + 1,
                                file + 512,
                                file + cluster,
                                file + 5 * cluster}) {
    add({absl::StrCat("file of ", length, " bytes instead of ", file),
         {},
         length});
  }
}

std::vector<Damage> Generator::run() {
  add({"none", {}, {}});
  header();
  features();
  extensions();
  extensions_that_are_new();
  l1_table();
  l2_tables();
  refcounts();
  snapshots();
  bitmaps();
  lengths();
  return std::move(damages_);
}

}  // namespace

Bytes damaged_by(const Damage& damage, const Bytes& image) {
  Bytes bytes = image;
  if (damage.length.has_value()) bytes.resize(*damage.length);
  for (const Damage::Patch& patch : damage.patches) {
    bytes.resize(
        std::max<uint64_t>(bytes.size(), patch.offset + patch.bytes.size()));
    std::copy(patch.bytes.begin(), patch.bytes.end(),
              bytes.begin() + static_cast<ptrdiff_t>(patch.offset));
  }
  return bytes;
}

std::vector<Damage> damages_of(const BaseImage& base) {
  return Generator(base).run();
}

}  // namespace spindle::testing

#include "tests/differential/geometry.h"

#include <algorithm>
#include <array>
#include <bit>
#include <ostream>

#include "absl/strings/str_cat.h"

namespace spindle::testing {
namespace {

constexpr std::array<const char*, 6> kBackingNames = {
    "none",        "short_raw",  "long_raw",
    "short_qcow2", "long_qcow2", "compressed_qcow2"};

constexpr std::array<const char*, 4> kPreallocations = {"off", "metadata",
                                                        "falloc", "full"};
constexpr std::array<const char*, 3> kCompressions = {"none", "zlib", "zstd"};
constexpr std::array<const char*, 3> kDataFileNames = {"none", "plain", "raw"};
constexpr std::array<const char*, 3> kEncryptions = {"none", "aes", "luks"};

// Parameters are counted, and so are the values of each.
constexpr size_t kParameters = 9;
constexpr size_t kMostValues = 16;

template <size_t count>
size_t index_of(const std::array<const char*, count>& names,
                const std::string& name) {
  return static_cast<size_t>(std::find(names.begin(), names.end(), name) -
                             names.begin());
}

std::array<size_t, kParameters> values_of(const Geometry& geometry) {
  return {static_cast<size_t>(std::countr_zero(geometry.cluster_bytes)) - 9,
          static_cast<size_t>(
              std::countr_zero(static_cast<unsigned>(geometry.refcount_bits))),
          geometry.compat == "1.1" ? size_t{1} : size_t{0},
          static_cast<size_t>(geometry.backing),
          index_of(kPreallocations, geometry.preallocation),
          index_of(kCompressions, geometry.compression),
          geometry.extended_l2 ? size_t{1} : size_t{0},
          static_cast<size_t>(geometry.data_file),
          index_of(kEncryptions, geometry.encryption)};
}

// A pair of values as one number.
constexpr size_t kPairNumbers =
    kParameters * kParameters * kMostValues * kMostValues;
std::vector<size_t> pairs_of(const Geometry& geometry) {
  const auto values = values_of(geometry);
  std::vector<size_t> pairs;
  for (size_t i = 0; i < kParameters; ++i) {
    for (size_t j = i + 1; j < kParameters; ++j) {
      pairs.push_back(((i * kParameters + j) * kMostValues + values[i]) *
                          kMostValues +
                      values[j]);
    }
  }
  return pairs;
}

}  // namespace

uint64_t Geometry::length_bytes() const {
  return std::max<uint64_t>(256 << 10, 6 * cluster_bytes) + 3 * 512;
}

uint64_t Geometry::backing_bytes() const {
  switch (backing) {
    case Backing::kNone:
      return 0;
    case Backing::kShortRaw:
    case Backing::kShortQcow2:
      return length_bytes() / 2 / 512 * 512 + 512;
    default:
      return length_bytes() + 65536;
  }
}

std::string Geometry::create_options(const std::string& path) const {
  std::string options =
      absl::StrCat("cluster_size=", cluster_bytes,
                   ",refcount_bits=", refcount_bits, ",compat=", compat);
  if (preallocation != "off")
    absl::StrAppend(&options, ",preallocation=", preallocation);
  if (compression == "zstd")
    absl::StrAppend(&options, ",compression_type=zstd");
  if (extended_l2) absl::StrAppend(&options, ",extended_l2=on");
  if (data_file != DataFile::kNone)
    absl::StrAppend(&options, ",data_file=", data_file_of(path));
  if (data_file == DataFile::kRaw)
    absl::StrAppend(&options, ",data_file_raw=on");
  if (encryption != "none")
    absl::StrAppend(&options,
                    ",encrypt.key-secret=secret0,encrypt.format=", encryption);
  // As weak as it may be: what is derived is not what is tested.
  if (encryption == "luks") absl::StrAppend(&options, ",encrypt.iter-time=0");
  return options;
}

bool Geometry::has_noise() const {
  return encryption != "none" && !extended_l2 &&
         (preallocation != "off" || data_file == DataFile::kRaw);
}

bool Geometry::is_legal() const {
  // What is compressed would not be encrypted.
  if (encryption != "none" && compression != "none") return false;
  // Version 2 knows one width only, and no incompatible features.
  if (compat == "0.10" && (refcount_bits != 16 || compression == "zstd" ||
                           extended_l2 || data_file != DataFile::kNone)) {
    return false;
  }
  // A subcluster is a sector at least.
  if (extended_l2 && cluster_bytes < 32 * 512) return false;
  // What is preallocated hides the backing file; qemu-img refuses.  So does a
  // raw data file.
  if (backing != Backing::kNone &&
      (preallocation != "off" || data_file == DataFile::kRaw)) {
    return false;
  }
  // Compressed data go into clusters of the image that nobody has used.
  return compression == "none" ||
         (preallocation == "off" && data_file == DataFile::kNone);
}

std::string Geometry::name() const {
  return absl::StrCat("cluster_", cluster_bytes, "_refcount_", refcount_bits,
                      "_version_", compat == "1.1" ? 3 : 2, "_backing_",
                      kBackingNames[static_cast<size_t>(backing)],
                      "_preallocation_", preallocation, "_compression_",
                      compression, extended_l2 ? "_extended" : "",
                      "_data_file_",
                      kDataFileNames[static_cast<size_t>(data_file)],
                      "_encryption_", encryption);
}

void PrintTo(const Geometry& geometry, std::ostream* out) {
  *out << geometry.name();
}

namespace {

// Calls `f` with every kind of version 3 or 2, legal or not.
template <typename F>
void for_each_layout(F f) {
  Geometry geometry;
  for (size_t bits = 9; bits <= 21; ++bits) {
    geometry.cluster_bytes = uint64_t{1} << bits;
    for (size_t order = 0; order <= 6; ++order) {
      geometry.refcount_bits = 1 << order;
      for (const char* compat : {"1.1", "0.10"}) {
        geometry.compat = compat;
        for (const bool extended_l2 : {false, true}) {
          geometry.extended_l2 = extended_l2;
          f(geometry);
        }
      }
    }
  }
}

// ... with every way to store data in it.
template <typename F>
void for_each_storage(Geometry geometry, F f) {
  for (size_t backing = 0; backing < kBackingNames.size(); ++backing) {
    geometry.backing = static_cast<Geometry::Backing>(backing);
    for (const char* preallocation : kPreallocations) {
      geometry.preallocation = preallocation;
      for (const char* compression : kCompressions) {
        geometry.compression = compression;
        for (size_t data_file = 0; data_file < kDataFileNames.size();
             ++data_file) {
          geometry.data_file = static_cast<Geometry::DataFile>(data_file);
          for (const char* encryption : kEncryptions) {
            geometry.encryption = encryption;
            f(geometry);
          }
        }
      }
    }
  }
}

}  // namespace

std::vector<Geometry> all_geometries() {
  std::vector<Geometry> all;
  for_each_layout([&](const Geometry& layout) {
    for_each_storage(layout, [&](const Geometry& geometry) {
      if (geometry.is_legal()) all.push_back(geometry);
    });
  });
  return all;
}

std::vector<Geometry> pairwise_geometries() {
  const std::vector<Geometry> all = all_geometries();
  std::vector<std::vector<size_t>> pairs;
  std::vector<bool> missing(kPairNumbers, false);
  for (const Geometry& geometry : all) {
    pairs.push_back(pairs_of(geometry));
    for (const size_t pair : pairs.back()) missing[pair] = true;
  }
  // Greedy: always the one that adds the most pairs.
  std::vector<Geometry> chosen;
  for (;;) {
    size_t best = 0;
    ptrdiff_t best_gain = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      const ptrdiff_t gain =
          std::count_if(pairs[i].begin(), pairs[i].end(),
                        [&](size_t pair) { return missing[pair]; });
      if (gain > best_gain) best = i, best_gain = gain;
    }
    if (best_gain == 0) return chosen;
    for (const size_t pair : pairs[best]) missing[pair] = false;
    chosen.push_back(all[best]);
  }
}

}  // namespace spindle::testing

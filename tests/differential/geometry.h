// Geometry: the kinds of qcow2 image that the differential tests go through.
//
// Thread safety: values.
#ifndef SPINDLE_TESTS_DIFFERENTIAL_GEOMETRY_H_
#define SPINDLE_TESTS_DIFFERENTIAL_GEOMETRY_H_

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

namespace spindle::testing {

struct Geometry {
  enum class Backing {
    kNone,
    kShortRaw,
    kLongRaw,
    kShortQcow2,
    kLongQcow2,
    kCompressedQcow2
  };

  uint64_t cluster_bytes = 65536;
  int refcount_bits = 16;
  std::string compat = "1.1";
  Backing backing = Backing::kNone;
  std::string preallocation = "off";
  // Whether some clusters are compressed, and how: "none", "zlib", "zstd".
  std::string compression = "none";
  bool extended_l2 = false;
  enum class DataFile { kNone, kPlain, kRaw };
  DataFile data_file = DataFile::kNone;
  // "none", "aes", "luks".
  std::string encryption = "none";

  // Several clusters, several L2 tables where they are small, and an end in
  // the middle of a cluster.
  uint64_t length_bytes() const;
  uint64_t backing_bytes() const;
  // Empty if it is not encrypted.
  std::string passphrase() const {
    return encryption == "none" ? "" : "opensesame";
  }
  // Whether clusters that nobody has written read as noise.
  bool has_noise() const;
  // For the image `path`.
  std::string create_options(const std::string& path) const;
  static std::string data_file_of(const std::string& path) {
    return path + ".data";
  }
  bool is_legal() const;
  // Usable as part of a test's name.
  std::string name() const;
};

void PrintTo(const Geometry& geometry, std::ostream* out);

// Every legal combination of all values.
std::vector<Geometry> all_geometries();

// A selection in which every legal pair of values of two parameters occurs.
std::vector<Geometry> pairwise_geometries();

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DIFFERENTIAL_GEOMETRY_H_

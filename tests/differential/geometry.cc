#include "tests/differential/geometry.h"

#include <algorithm>
#include <array>
#include <ostream>
#include <set>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace spindle::testing {
namespace {

constexpr std::array<const char*, 6> kBackingNames = {
    "none",        "short_raw",  "long_raw",
    "short_qcow2", "long_qcow2", "compressed_qcow2"};

// One value of one parameter, and a pair of them.
using Value = std::pair<int, std::string>;
using Pair = std::pair<Value, Value>;

std::array<Value, 5> values_of(const Geometry& geometry) {
  return {Value{0, absl::StrCat(geometry.cluster_bytes)},
          Value{1, absl::StrCat(geometry.refcount_bits)},
          Value{2, geometry.compat},
          Value{3, kBackingNames[static_cast<size_t>(geometry.backing)]},
          Value{4, geometry.preallocation}};
}

std::vector<Pair> pairs_of(const Geometry& geometry) {
  const auto values = values_of(geometry);
  std::vector<Pair> pairs;
  for (size_t i = 0; i < values.size(); ++i) {
    for (size_t j = i + 1; j < values.size(); ++j)
      pairs.emplace_back(values[i], values[j]);
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

std::string Geometry::create_options() const {
  std::string options =
      absl::StrCat("cluster_size=", cluster_bytes,
                   ",refcount_bits=", refcount_bits, ",compat=", compat);
  if (preallocation != "off")
    absl::StrAppend(&options, ",preallocation=", preallocation);
  return options;
}

std::string Geometry::name() const {
  return absl::StrCat("cluster_", cluster_bytes, "_refcount_", refcount_bits,
                      "_version_", compat == "1.1" ? 3 : 2, "_backing_",
                      kBackingNames[static_cast<size_t>(backing)],
                      "_preallocation_", preallocation);
}

void PrintTo(const Geometry& geometry, std::ostream* out) {
  *out << geometry.name();
}

std::vector<Geometry> all_geometries() {
  std::vector<Geometry> all;
  for (uint64_t cluster_bytes = 512; cluster_bytes <= (2 << 20);
       cluster_bytes *= 2) {
    for (int refcount_bits = 1; refcount_bits <= 64; refcount_bits *= 2) {
      for (const char* compat : {"1.1", "0.10"}) {
        // Version 2 knows one width only.
        if (compat[0] == '0' && refcount_bits != 16) continue;
        for (size_t backing = 0; backing < kBackingNames.size(); ++backing) {
          for (const char* preallocation :
               {"off", "metadata", "falloc", "full"}) {
            // What is preallocated hides the backing file; qemu-img refuses.
            if (backing != 0 && std::string(preallocation) != "off") continue;
            all.push_back({.cluster_bytes = cluster_bytes,
                           .refcount_bits = refcount_bits,
                           .compat = compat,
                           .backing = static_cast<Geometry::Backing>(backing),
                           .preallocation = preallocation});
          }
        }
      }
    }
  }
  return all;
}

std::vector<Geometry> pairwise_geometries() {
  const std::vector<Geometry> all = all_geometries();
  std::set<Pair> missing;
  for (const Geometry& geometry : all) {
    for (const Pair& pair : pairs_of(geometry)) missing.insert(pair);
  }
  // Greedy: always the one that adds the most pairs.
  std::vector<Geometry> chosen;
  while (!missing.empty()) {
    const auto gain = [&](const Geometry& geometry) {
      const auto pairs = pairs_of(geometry);
      return std::count_if(pairs.begin(), pairs.end(), [&](const Pair& pair) {
        return missing.contains(pair);
      });
    };
    const Geometry* best = &all.front();
    auto best_gain = gain(*best);
    for (const Geometry& geometry : all) {
      const auto this_gain = gain(geometry);
      if (this_gain > best_gain) best = &geometry, best_gain = this_gain;
    }
    for (const Pair& pair : pairs_of(*best)) missing.erase(pair);
    chosen.push_back(*best);
  }
  return chosen;
}

}  // namespace spindle::testing

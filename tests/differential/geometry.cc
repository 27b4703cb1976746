#include "tests/differential/geometry.h"

#include <algorithm>
#include <array>
#include <map>
#include <ostream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace spindle::testing {
namespace {

constexpr std::array<const char*, 6> kBackingNames = {
    "none",        "short_raw",  "long_raw",
    "short_qcow2", "long_qcow2", "compressed_qcow2"};

// One value of one parameter, and a pair of them.
using Value = std::pair<int, std::string>;
using Pair = std::pair<Value, Value>;

std::array<Value, 6> values_of(const Geometry& geometry) {
  return {Value{0, absl::StrCat(geometry.cluster_bytes)},
          Value{1, absl::StrCat(geometry.refcount_bits)},
          Value{2, geometry.compat},
          Value{3, kBackingNames[static_cast<size_t>(geometry.backing)]},
          Value{4, geometry.preallocation},
          Value{5, geometry.extended_l2 ? "extended" : "standard"}};
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
  if (extended_l2) absl::StrAppend(&options, ",extended_l2=on");
  return options;
}

std::string Geometry::name() const {
  return absl::StrCat("cluster_", cluster_bytes, "_refcount_", refcount_bits,
                      "_version_", compat == "1.1" ? 3 : 2, "_backing_",
                      kBackingNames[static_cast<size_t>(backing)],
                      "_preallocation_", preallocation,
                      extended_l2 ? "_extended" : "");
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
            // Subclusters have at least 512 bytes.
            if (cluster_bytes < 32 * 512 || compat[0] == '0') continue;
            all.push_back(all.back());
            all.back().extended_l2 = true;
          }
        }
      }
    }
  }
  return all;
}

std::vector<Geometry> pairwise_geometries() {
  const std::vector<Geometry> all = all_geometries();
  // Pairs by number: they are compared a million times.
  std::map<Pair, size_t> numbers;
  std::vector<std::vector<size_t>> pairs(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    for (const Pair& pair : pairs_of(all[i]))
      pairs[i].push_back(
          numbers.try_emplace(pair, numbers.size()).first->second);
  }
  std::vector<bool> missing(numbers.size(), true);
  const auto gain = [&](size_t i) {
    return std::count_if(pairs[i].begin(), pairs[i].end(),
                         [&](size_t pair) { return missing[pair]; });
  };
  // Greedy: always the one that adds the most pairs.
  std::vector<Geometry> chosen;
  while (std::find(missing.begin(), missing.end(), true) != missing.end()) {
    size_t best = 0;
    for (size_t i = 1; i < all.size(); ++i) {
      if (gain(i) > gain(best)) best = i;
    }
    for (const size_t pair : pairs[best]) missing[pair] = false;
    chosen.push_back(all[best]);
  }
  return chosen;
}

}  // namespace spindle::testing

#include "formats/qcow2/runtime_options.h"

#include <algorithm>
#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/checked_math.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/options/option_values.h"
#include "formats/qcow2/image_files.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kMaxDefaultL2CacheBytes = uint64_t{32} << 20;
constexpr uint32_t kDefaultSliceBytes = 4096;
constexpr uint32_t kMinSliceBytes = 512;
constexpr absl::string_view kDiscardNoUnrefOption = "discard-no-unref";
// Enough for an operation's own slices in every shard.
constexpr uint64_t kMinCacheSlices = 16;

// "4096", "64k", "1M", ...
absl::StatusOr<uint64_t> parse_size(const std::string& name,
                                    const std::string& text) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("option ", name, "=", text,
                     " is not a size (a number, or one with k, M, G)"));
  };
  if (text.empty()) return bad();
  uint32_t shift = 0;
  std::string digits = text;
  switch (text.back()) {
    case 'k':
    case 'K':
      shift = 10;
      break;
    case 'M':
      shift = 20;
      break;
    case 'G':
      shift = 30;
      break;
    default:
      break;
  }
  if (shift != 0) digits.pop_back();
  uint64_t value = 0;
  if (!absl::SimpleAtoi(digits, &value)) return bad();
  const std::optional<uint64_t> bytes =
      checked_multiply(value, uint64_t{1} << shift);
  if (!bytes.has_value()) return bad();
  return *bytes;
}

// What covers every L2 table, and every refcount block of a file that is as
// long as the disk.
uint64_t full_l2_bytes(const Header& header) {
  return divide_round_up(header.size_bytes, header.cluster_size_bytes()) *
         header.l2_entry_size_bytes();
}
uint64_t full_refcount_bytes(const Header& header) {
  const uint64_t clusters =
      divide_round_up(header.size_bytes, header.cluster_size_bytes());
  return divide_round_up(clusters, header.refcount_block_entry_count()) *
         header.cluster_size_bytes();
}

absl::StatusOr<bool> parse_discard_no_unref(const std::string& text,
                                            const Header& header) {
  const absl::StatusOr<bool> keeps =
      parse_bool_option(kDiscardNoUnrefOption, text);
  if (!keeps.ok() || !*keeps || header.version >= kVersion3) return keeps;
  return absl::InvalidArgumentError(
      absl::StrCat("option ", kDiscardNoUnrefOption, "=", text,
                   " needs a qcow2 image of version 3 (compat=1.1); this one "
                   "has version ",
                   header.version));
}

struct Sizes {
  std::optional<uint64_t> l2;
  std::optional<uint64_t> refcount;
  std::optional<uint64_t> both;
  uint64_t slice = 0;
};

absl::StatusOr<Sizes> collect(const OpenOptions& options, const Header& header,
                              RuntimeOptions* result) {
  Sizes sizes;
  sizes.slice =
      std::min<uint64_t>(kDefaultSliceBytes, header.cluster_size_bytes());
  for (const auto& [name, text] : options.driver_options) {
    if (name == "reuse") {
      if (text != "lowest" && text != "lazy") {
        return absl::InvalidArgumentError(absl::StrCat(
            "option reuse=", text, " is neither \"lowest\" nor \"lazy\""));
      }
      result->reuse =
          text == "lowest" ? ReusePolicy::kLowest : ReusePolicy::kLazy;
      continue;
    }
    if (name == kDiscardNoUnrefOption) {
      absl::StatusOr<bool> keeps = parse_discard_no_unref(text, header);
      if (!keeps.ok()) return keeps.status();
      result->discard_no_unref = *keeps;
      continue;
    }
    if (name == kDataFileOption) continue;       // for open_image_files()
    if (crypto::is_open_option(name)) continue;  // for Encryption
    const bool is_known = name == "l2-cache-size" ||
                          name == "refcount-cache-size" ||
                          name == "cache-size" || name == "l2-cache-entry-size";
    if (!is_known) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown option ", name,
          " for qcow2; known are l2-cache-size, refcount-cache-size, ",
          "cache-size, l2-cache-entry-size, reuse, ", kDiscardNoUnrefOption,
          ", ", kDataFileOption, ", encrypt.format and encrypt.key-secret"));
    }
    const absl::StatusOr<uint64_t> value = parse_size(name, text);
    if (!value.ok()) return value.status();
    if (name == "l2-cache-size") sizes.l2 = *value;
    if (name == "refcount-cache-size") sizes.refcount = *value;
    if (name == "cache-size") sizes.both = *value;
    if (name == "l2-cache-entry-size") sizes.slice = *value;
  }
  return sizes;
}

}  // namespace

absl::StatusOr<RuntimeOptions> parse_runtime_options(const OpenOptions& options,
                                                     const Header& header) {
  RuntimeOptions result;
  result.punch_holes = options.pass_discard_through;
  absl::StatusOr<Sizes> sizes = collect(options, header, &result);
  if (!sizes.ok()) return sizes.status();
  if (!is_power_of_two(sizes->slice) || sizes->slice < kMinSliceBytes ||
      sizes->slice > header.cluster_size_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("option l2-cache-entry-size=", sizes->slice,
                     " is not a power of two from ", kMinSliceBytes,
                     " to the cluster size ", header.cluster_size_bytes()));
  }
  result.slice_bytes = static_cast<uint32_t>(sizes->slice);

  uint64_t l2 = std::min(full_l2_bytes(header), kMaxDefaultL2CacheBytes);
  uint64_t refcount =
      std::min(full_refcount_bytes(header), kMaxDefaultL2CacheBytes / 4);
  if (sizes->both.has_value()) {
    const uint64_t l2_part = sizes->l2.value_or(0);
    const uint64_t refcount_part = sizes->refcount.value_or(0);
    if (l2_part > *sizes->both || refcount_part > *sizes->both - l2_part) {
      return absl::InvalidArgumentError(absl::StrCat(
          "options l2-cache-size=", l2_part, " and refcount-cache-size=",
          refcount_part, " exceed cache-size=", *sizes->both));
    }
    // L2 tables matter more: they get what covers the image, if it is there.
    l2 = sizes->refcount.has_value() ? *sizes->both - refcount_part
                                     : std::min(l2, *sizes->both / 5 * 4);
    refcount = *sizes->both - sizes->l2.value_or(l2);
  }
  const uint64_t least = kMinCacheSlices * result.slice_bytes;
  result.l2_cache_bytes = std::max(sizes->l2.value_or(l2), least);
  result.refcount_cache_bytes =
      std::max(sizes->refcount.value_or(refcount), least);
  return result;
}

}  // namespace spindle::qcow2

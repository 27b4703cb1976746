#include "formats/qcow2/runtime_options.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/node_options.h"
#include "engine/option_values.h"
#include "formats/cluster/image_files.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kMaxDefaultL2CacheBytes = uint64_t{32} << 20;
constexpr uint32_t kDefaultSliceBytes = 4096;
constexpr uint32_t kMinSliceBytes = 512;
constexpr absl::string_view kDiscardNoUnrefOption = "discard-no-unref";
// Enough for an operation's own slices in every shard.
constexpr uint64_t kMinCacheSlices = 16;

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
  std::optional<uint64_t> slice;
};

std::optional<std::string> take(const std::string& name, OptionMap* options) {
  auto node = options->extract(name);
  if (node.empty()) return std::nullopt;
  return std::move(node.mapped());
}

absl::Status take_size(const std::string& name, OptionMap* options,
                       std::optional<uint64_t>* size) {
  const std::optional<std::string> text = take(name, options);
  if (!text.has_value()) return absl::OkStatus();
  const absl::StatusOr<uint64_t> value = parse_size_option(name, *text);
  if (value.ok()) *size = *value;
  return value.status();
}

absl::Status take_sizes(OptionMap* options, Sizes* sizes) {
  absl::Status status = take_size("l2-cache-size", options, &sizes->l2);
  if (status.ok())
    status = take_size("refcount-cache-size", options, &sizes->refcount);
  if (status.ok()) status = take_size("cache-size", options, &sizes->both);
  if (status.ok())
    status = take_size("l2-cache-entry-size", options, &sizes->slice);
  return status;
}

absl::Status take_reuse(OptionMap* options, ReusePolicy* reuse) {
  const std::optional<std::string> text = take("reuse", options);
  if (!text.has_value()) return absl::OkStatus();
  if (*text != "lowest" && *text != "lazy") {
    return absl::InvalidArgumentError(absl::StrCat(
        "option reuse=", *text, " is neither \"lowest\" nor \"lazy\""));
  }
  *reuse = *text == "lowest" ? ReusePolicy::kLowest : ReusePolicy::kLazy;
  return absl::OkStatus();
}

// What is always checked, checks nothing less.
absl::Status take_overlap_checks(OptionMap* options) {
  for (const char* name : {"overlap-check", "overlap-check.template"}) {
    const std::optional<std::string> text = take(name, options);
    if (!text.has_value() || *text == "none" || *text == "constant" ||
        *text == "cached" || *text == "all") {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "Unsupported value '", *text,
        "' for qcow2 option 'overlap-check'. Allowed are any of the following: "
        "none, constant, cached, all"));
  }
  for (const char* part : {"main-header", "active-l1", "active-l2",
                           "refcount-table", "refcount-block", "snapshot-table",
                           "inactive-l1", "inactive-l2", "bitmap-directory"}) {
    const std::string name = absl::StrCat("overlap-check.", part);
    const std::optional<std::string> text = take(name, options);
    if (!text.has_value()) continue;
    const absl::StatusOr<bool> on = parse_bool_option(name, *text);
    if (!on.ok()) return on.status();
  }
  return absl::OkStatus();
}

// REQUIRES: sizes.both has a value.
absl::Status check_sizes(const Sizes& sizes) {
  if (sizes.l2.has_value() && sizes.refcount.has_value()) {
    return absl::InvalidArgumentError(
        "cache-size, l2-cache-size and refcount-cache-size may not be set at "
        "the same time");
  }
  const auto exceeds = [&](absl::string_view name, uint64_t size) {
    return with_qemu_words(
        absl::InvalidArgumentError(absl::StrCat(
            "option ", name, "=", size, " exceeds cache-size=", *sizes.both)),
        absl::StrCat(name, " may not exceed cache-size"));
  };
  if (sizes.l2.value_or(0) > *sizes.both)
    return exceeds("l2-cache-size", *sizes.l2);
  if (sizes.refcount.value_or(0) > *sizes.both)
    return exceeds("refcount-cache-size", *sizes.refcount);
  return absl::OkStatus();
}

absl::StatusOr<Sizes> collect(OptionMap options, const Header& header,
                              bool reopening, RuntimeOptions* result) {
  Sizes sizes;
  absl::Status status = take_sizes(&options, &sizes);
  if (status.ok()) status = take_reuse(&options, &result->reuse);
  if (status.ok()) status = take_overlap_checks(&options);
  if (!status.ok()) return status;
  if (const auto text = take(std::string(kDiscardNoUnrefOption), &options)) {
    const absl::StatusOr<bool> keeps = parse_discard_no_unref(*text, header);
    if (!keeps.ok()) return keeps.status();
    result->discard_no_unref = *keeps;
  }
  take(std::string(kDataFileOption), &options);  // for open_image_files()
  std::erase_if(options, [](const auto& option) {
    return crypto::is_open_option(option.first);  // for Encryption
  });
  status = reopening ? ReopenOptions{.driver_options = options}.refuse_options()
                     : refuse_left_options("format", "qcow2", options);
  if (!status.ok()) return status;
  return sizes;
}

}  // namespace

absl::StatusOr<RuntimeOptions> parse_runtime_options(const OpenOptions& options,
                                                     const Header& header,
                                                     bool reopening) {
  RuntimeOptions result;
  result.punch_holes = options.pass_discard_through;
  if (options.place_as_qemu) result.reuse = ReusePolicy::kLowest;
  absl::StatusOr<Sizes> sizes =
      collect(options.driver_options, header, reopening, &result);
  if (!sizes.ok()) return sizes.status();
  const uint64_t slice = sizes->slice.value_or(
      std::min<uint64_t>(kDefaultSliceBytes, header.cluster_size_bytes()));
  if (!is_power_of_two(slice) || slice < kMinSliceBytes ||
      slice > header.cluster_size_bytes()) {
    return with_qemu_words(
        absl::InvalidArgumentError(
            absl::StrCat("option l2-cache-entry-size=", slice,
                         " is not a power of two from ", kMinSliceBytes,
                         " to the cluster size ", header.cluster_size_bytes())),
        absl::StrCat("L2 cache entry size must be a power of two between ",
                     kMinSliceBytes, " and the cluster size (",
                     header.cluster_size_bytes(), ")"));
  }
  result.slice_bytes = static_cast<uint32_t>(slice);

  uint64_t l2 = std::min(full_l2_bytes(header), kMaxDefaultL2CacheBytes);
  uint64_t refcount =
      std::min(full_refcount_bytes(header), kMaxDefaultL2CacheBytes / 4);
  if (sizes->both.has_value()) {
    absl::Status status = check_sizes(*sizes);
    if (!status.ok()) return status;
    // L2 tables matter more: they get what covers the image, if it is there.
    l2 = sizes->refcount.has_value() ? *sizes->both - *sizes->refcount
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

#include "formats/qcow2/amend_plan.h"

#include <algorithm>
#include <bit>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "engine/checked_math.h"
#include "engine/option_values.h"
#include "engine/sector.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/luks/amend.h"

namespace spindle::qcow2 {
namespace {

absl::Status refuse(absl::string_view message) {
  return absl::InvalidArgumentError(message);
}

absl::Status read_version(const std::string& text, AmendPlan* plan) {
  if (text == "0.10" || text == "v2") {
    plan->version = kVersion2;
  } else if (text == "1.1" || text == "v3") {
    plan->version = kVersion3;
  } else {
    return refuse(absl::StrCat("Unknown compatibility level ", text));
  }
  return absl::OkStatus();
}

absl::Status read_refcount_bits(const std::string& text, AmendPlan* plan) {
  const absl::StatusOr<uint64_t> bits =
      parse_number_option("refcount_bits", text);
  if (!bits.ok()) return bits.status();
  if (!is_power_of_two(*bits) || *bits > uint64_t{1} << kMaxRefcountOrder) {
    return refuse(
        "Refcount width must be a power of two and may not exceed 64 bits");
  }
  plan->refcount_order = static_cast<uint32_t>(std::countr_zero(*bits));
  return absl::OkStatus();
}

absl::Status read_size(const std::string& text, AmendPlan* plan) {
  const absl::StatusOr<uint64_t> size = parse_size_option("size", text);
  if (!size.ok()) return size.status();
  if (*size % kSectorSizeBytes != 0)
    return refuse("The new size must be a multiple of 512");
  // As QEMU: 0 is no size.
  if (*size != 0) plan->size_bytes = *size;
  return absl::OkStatus();
}

absl::Status read_data_file(const std::string& text, const Header& header,
                            AmendPlan* plan) {
  if (!header.has_data_file()) {
    return refuse(
        "data-file can only be set for images that use an external data file");
  }
  if (text.size() > kMaxDataFilenameBytes) {
    return refuse(absl::StrCat("data_file has a name of ", text.size(),
                               " bytes: the limit is ", kMaxDataFilenameBytes));
  }
  plan->data_filename = text;
  return absl::OkStatus();
}

absl::Status read_data_file_raw(const std::string& text, const Header& header,
                                AmendPlan* plan) {
  const absl::StatusOr<bool> raw = parse_bool_option("data_file_raw", text);
  if (!raw.ok()) return raw.status();
  if (*raw && !header.data_file_is_raw())
    return refuse("data-file-raw cannot be set on existing images");
  plan->data_file_is_raw = *raw;
  return absl::OkStatus();
}

absl::Status read_lazy_refcounts(const std::string& text, AmendPlan* plan) {
  const absl::StatusOr<bool> lazy = parse_bool_option("lazy_refcounts", text);
  if (!lazy.ok()) return lazy.status();
  plan->lazy_refcounts = *lazy;
  return absl::OkStatus();
}

// Both must be what they are, if one is given.
absl::Status check_backing(const OptionMap& changes, const Header& header) {
  const auto stays = [&](const char* name, const std::string& now) {
    const auto given = changes.find(name);
    return given == changes.end() ? now.empty()
                                  : !now.empty() && given->second == now;
  };
  const bool is_given =
      changes.count("backing_file") != 0 || changes.count("backing_fmt") != 0;
  if (!is_given || (stays("backing_file", header.backing_filename) &&
                    stays("backing_fmt", header.backing_format))) {
    return absl::OkStatus();
  }
  return refuse(
      "Cannot amend the backing file\n"
      "You can use 'qemu-img rebase' instead.");
}

// What the slots shall become is for LUKS to judge.
absl::Status check_key_slot_option(const std::string& name,
                                   const Header& header) {
  const std::vector<OptionHelp> known = amend_options();
  if (std::none_of(known.begin(), known.end(),
                   [&name](const OptionHelp& o) { return o.name == name; }))
    return refuse(absl::StrCat("Invalid parameter '", name, "'"));
  if (header.crypt_method == kCryptNone) {
    return absl::FailedPreconditionError(
        "Can't amend encryption options - encryption not present");
  }
  if (header.crypt_method == kCryptLuks) return absl::OkStatus();
  return absl::UnimplementedError(
      "Only LUKS encryption options can be amended");
}

absl::Status read_option(const std::string& name, const std::string& value,
                         const Header& header, AmendPlan* plan) {
  if (name == "compat") return read_version(value, plan);
  if (name == "refcount_bits") return read_refcount_bits(value, plan);
  if (name == "lazy_refcounts") return read_lazy_refcounts(value, plan);
  if (name == "size") return read_size(value, plan);
  if (name == "data_file") return read_data_file(value, header, plan);
  if (name == "data_file_raw") return read_data_file_raw(value, header, plan);
  if (name == "backing_file" || name == "backing_fmt") return absl::OkStatus();
  if (absl::StartsWith(name, crypto::kEncryptPrefix))
    return check_key_slot_option(name, header);
  return refuse(absl::StrCat("Invalid parameter '", name, "'"));
}

// The features that version 2 does not have.
absl::Status check_version2(const AmendPlan& plan, const Header& header) {
  if (plan.lazy_refcounts && !header.lazy_refcounts()) {
    return refuse(
        "Lazy refcounts only supported with compatibility level 1.1 and above "
        "(use compat=1.1 or greater)");
  }
  if (plan.refcount_order != kRefcountOrderOfVersion2) {
    return refuse(
        plan.refcount_order == header.refcount_order
            ? "compat=0.10 requires refcount_bits=16"
            : "Refcount widths other than 16 bits require compatibility level "
              "1.1 or above (use compat=1.1 or greater)");
  }
  if (header.has_data_file()) {
    return absl::UnimplementedError(
        "Cannot downgrade an image with a data file");
  }
  const uint64_t others = header.incompatible_features &
                          ~(kIncompatibleDirty | kIncompatibleCompressionType);
  if (others != 0) {
    return absl::UnimplementedError(absl::StrFormat(
        "Cannot downgrade an image with incompatible features %#x set",
        others));
  }
  if (header.find_extension(kExtensionBitmaps) != nullptr) {
    return absl::UnimplementedError(
        "Cannot downgrade an image with persistent bitmaps: version 2 has none "
        "(remove them first)");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AmendPlan> plan_amend(const OptionMap& changes,
                                     const Header& header) {
  AmendPlan plan;
  plan.version = header.version;
  plan.refcount_order = header.refcount_order;
  plan.lazy_refcounts = header.lazy_refcounts();
  plan.data_file_is_raw = header.data_file_is_raw();
  for (const auto& [name, value] : changes) {
    absl::Status read = read_option(name, value, header, &plan);
    if (!read.ok()) return read;
  }
  absl::Status status = check_backing(changes, header);
  if (!status.ok()) return status;
  if (plan.version < kVersion3) {
    status = check_version2(plan, header);
    if (!status.ok()) return status;
  }
  return plan;
}

OptionMap key_slot_changes(const OptionMap& changes) {
  OptionMap result;
  for (const auto& [name, value] : changes) {
    if (absl::StartsWith(name, crypto::kEncryptPrefix))
      result[name.substr(crypto::kEncryptPrefix.size())] = value;
  }
  return result;
}

std::vector<OptionHelp> amend_options() {
  std::vector<OptionHelp> options = {
      {"backing_file", "<str>", "File name of a base image"},
      {"backing_fmt", "<str>", "Image format of the base image"},
      {"compat", "<str>", "Compatibility level (v2 [0.10] or v3 [1.1])"},
      {"data_file", "<str>", "File name of an external data file"},
      {"data_file_raw", "<bool (on/off)>",
       "The external data file must stay valid as a raw image"},
  };
  for (OptionHelp& option : luks::amend_options()) {
    option.name.insert(0, crypto::kEncryptPrefix);
    options.push_back(std::move(option));
  }
  options.push_back(
      {"lazy_refcounts", "<bool (on/off)>", "Postpone refcount updates"});
  options.push_back(
      {"refcount_bits", "<num>", "Width of a reference count entry in bits"});
  options.push_back({"size", "<size>", "Virtual disk size"});
  return options;
}

}  // namespace spindle::qcow2

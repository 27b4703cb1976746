#include "formats/qcow2/measure.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/checked_math.h"
#include "engine/dirty_bitmap.h"
#include "engine/errors.h"
#include "engine/sector.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

// Refcount table and blocks that count `clusters` others and themselves.
uint64_t refcount_bytes(const Header& header, uint64_t clusters) {
  const uint64_t cluster = header.cluster_size_bytes();
  const uint64_t table_entries = cluster / kRefcountTableEntryBytes;
  uint64_t blocks = 0;
  uint64_t tables = 0;
  for (uint64_t total = 0, before = 1; total != before;) {
    before = total;
    blocks = divide_round_up(clusters + tables + blocks,
                             header.refcount_block_entry_count());
    tables = divide_round_up(blocks, table_entries);
    total = clusters + blocks + tables;
  }
  return (blocks + tables) * cluster;
}

// Header, tables and refcounts of a disk of which all is allocated.
uint64_t metadata_bytes(const Header& header, uint64_t disk_bytes) {
  const uint64_t cluster = header.cluster_size_bytes();
  const uint64_t l2_bytes =
      align_up(disk_bytes / cluster * header.l2_entry_size_bytes(), cluster);
  const uint64_t l1_bytes =
      align_up(l2_bytes / cluster * kL1EntryBytes, cluster);
  const uint64_t tables = cluster + l2_bytes + l1_bytes;
  return tables + refcount_bytes(header, (tables + disk_bytes) / cluster);
}

// The clusters that have data, whole.
absl::StatusOr<uint64_t> data_bytes(BlockDriver* source, uint64_t length,
                                    uint64_t cluster) {
  uint64_t bytes = 0;
  const bool knows = source->capabilities().has(Capability::kBlockStatus);
  for (uint64_t offset = 0; offset < length;) {
    if (!knows) return align_up(length, cluster);
    const absl::StatusOr<BlockStatus> status = source->block_status(
        {offset, length - offset}, BlockStatusScope::kWholeChain);
    if (!status.ok()) return status.status();
    uint64_t end = offset + status->length;
    if (status->data && !status->zero) {
      end = align_up(end, cluster);
      bytes += end - align_down(offset, cluster);
    }
    offset = end;
  }
  return bytes;
}

// Copies of the source's persistent bitmaps: bits, tables, directory.
absl::StatusOr<std::optional<uint64_t>> bitmaps_bytes(BlockDriver* source,
                                                      uint64_t cluster) {
  if (source == nullptr || !source->capabilities().has(Capability::kBitmaps)) {
    return std::nullopt;
  }
  const absl::StatusOr<std::vector<DirtyBitmapInfo>> bitmaps =
      source->list_bitmaps();
  if (!bitmaps.ok()) return bitmaps.status();
  uint64_t bytes = 0;
  uint64_t directory = 0;
  for (const DirtyBitmapInfo& bitmap : *bitmaps) {
    if (bitmap.inconsistent) continue;
    const uint64_t bits =
        divide_round_up(source->length_bytes(), bitmap.granularity_bytes);
    const uint64_t data = divide_round_up(divide_round_up(bits, 8), cluster);
    bytes += data * cluster + align_up(data * kBitmapTableEntryBytes, cluster);
    directory +=
        align_up(kBitmapEntryBytes + bitmap.name.size(), kBitmapEntryAlignment);
  }
  return bytes + align_up(directory, cluster);
}

std::string find(const OptionMap& options, const std::string& name) {
  const auto found = options.find(name);
  return found == options.end() ? "" : found->second;
}

absl::Status check_version(const OptionMap& options) {
  const std::string compat = find(options, "compat");
  for (const char* known : {"", "0.10", "v2", "1.1", "v3"}) {
    if (compat == known) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("Invalid compatibility level: '", compat, "'"));
}

// What create() says of an option, QEMU's measure says otherwise.
absl::Status in_words_of_measure(const absl::Status& status,
                                 const CreateOptions& options) {
  std::string words = qemu_words(status);
  if (absl::StartsWith(words, "Different refcount widths")) {
    words = absl::StrReplaceAll(words, {{"version=v3", "compat=1.1"}});
  } else if (absl::StrContains(words, "larger cluster size") ||
             absl::StrContains(words, "size cannot be negative")) {
    words = "The image size is too large (try using a larger cluster size)";
  } else if (absl::StartsWith(words, "Parameter 'preallocation'")) {
    words = absl::StrCat("invalid parameter value: ",
                         find(options.options, "preallocation"));
  }
  return with_qemu_words(status, words);
}

absl::StatusOr<CreatePlan> plan_measured(CreateOptions options) {
  absl::Status status = check_version(options.options);
  if (!status.ok()) return status;
  const bool is_luks = find(options.options, "encrypt.format") == "luks";
  for (auto option = options.options.begin();
       option != options.options.end();) {
    const std::string& name = option->first;
    const bool counts =
        name == "compat" || name == "cluster_size" || name == "refcount_bits" ||
        name == "extended_l2" || name == "preallocation" ||
        (is_luks && absl::StartsWith(name, crypto::kEncryptPrefix));
    option = counts ? std::next(option) : options.options.erase(option);
  }
  // Long entries have their length in any version.
  if (find(options.options, "extended_l2") == "on" &&
      find(options.options, "refcount_bits").empty()) {
    options.options.erase("compat");
  }
  const absl::StatusOr<CreatePlan> plan = plan_create(options);
  if (!plan.ok()) return in_words_of_measure(plan.status(), options);
  return plan;
}

}  // namespace

absl::StatusOr<ImageFormat::Measurement> measure_image(
    const CreateOptions& options, BlockDriver* source) {
  const absl::StatusOr<CreatePlan> plan = plan_measured(options);
  if (!plan.ok()) return plan.status();
  const Header& header = plan->header;
  const uint64_t cluster = header.cluster_size_bytes();
  const uint64_t disk = align_up(header.size_bytes, cluster);
  uint64_t data = 0;
  if (plan->preallocation == Preallocation::kFalloc ||
      plan->preallocation == Preallocation::kFull ||
      (source != nullptr && !header.backing_filename.empty())) {
    // What the backing file has already, nobody knows here.
    data = disk;
  } else if (source != nullptr) {
    const absl::StatusOr<uint64_t> found =
        data_bytes(source, source->length_bytes(), cluster);
    if (!found.ok()) return found.status();
    data = *found;
  }
  const absl::StatusOr<std::optional<uint64_t>> bitmaps =
      bitmaps_bytes(source, cluster);
  if (!bitmaps.ok()) return bitmaps.status();
  uint64_t metadata = metadata_bytes(header, disk);
  if (plan->luks.has_value())
    metadata += align_up(plan->luks->header_area_bytes(), cluster);
  return ImageFormat::Measurement{metadata + data, metadata + disk, *bitmaps};
}

}  // namespace spindle::qcow2

// What `info` says about one image, from its own metadata: neither its backing
// file nor its data file is opened, and every valid header will do, also of an
// image that Spindle cannot open.
//
// Thread safety: values and functions without state.
#ifndef SPINDLE_TOOLS_IMAGE_REPORT_H_
#define SPINDLE_TOOLS_IMAGE_REPORT_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/format.h"
#include "engine/snapshot.h"

namespace spindle {

struct ImageReport {
  std::string filename;
  std::string format;
  uint64_t virtual_size_bytes = 0;
  std::optional<uint64_t> actual_size_bytes;
  std::optional<uint64_t> cluster_size_bytes;
  bool encrypted = false;
  bool dirty = false;
  std::string backing_filename;  // as it stands in the image; empty: none
  std::string backing_format;    // empty: not stated
  std::vector<SnapshotInfo> snapshots;
  // Where that name leads from the image's own directory.
  std::string full_backing_filename;
  // By QEMU's names and in its order; null: the format has nothing to add.
  nlohmann::ordered_json format_specific;
};

struct ReportOptions {
  // Empty: guess it from the content.
  std::string format;
  // Read also while somebody else writes (-U).
  bool force_share = false;
};

absl::StatusOr<ImageReport> make_report(const DriverRegistry& registry,
                                        const std::string& filename,
                                        const ReportOptions& options);

// The report of an image and those of its backing chain, from the top down.
// Backing files are found by the names and formats that the images state.
// Errors: those of any image of the chain, and kInvalidArgument for a loop.
absl::StatusOr<std::vector<ImageReport>> make_chain_report(
    const DriverRegistry& registry, const std::string& filename,
    const ReportOptions& options);

// The lines of `qemu-img info`.
std::string to_text(const ImageReport& report);
// Those of them that only this format has.
std::string format_specific_text(const ImageReport& report);
nlohmann::ordered_json to_json(const ImageReport& report);
// As QEMU prints JSON.
std::string print_json(const nlohmann::ordered_json& json);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMAGE_REPORT_H_

// What `info` says about one image, from its own metadata: neither its backing
// file nor its data file is opened, and no key is needed.
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
#include "engine/image_opener.h"
#include "engine/snapshot.h"
#include "tools/image_opts.h"

namespace spindle {

struct ImageReport {
  std::string filename;
  std::string format;
  uint64_t virtual_size_bytes = 0;
  std::optional<uint64_t> actual_size_bytes;
  std::optional<uint64_t> cluster_size_bytes;
  bool encrypted = false;
  // A key or another file, to do more than to describe it; also one that the
  // header speaks of and does not have.
  bool needs_more = false;
  bool dirty = false;
  std::string backing_filename;  // as it stands in the image; empty: none
  std::string backing_format;    // empty: not stated
  std::vector<SnapshotInfo> snapshots;
  // Where that name leads: a relative one starts at the image's directory.
  std::string full_backing_filename;
  // By QEMU's names and in its order; null: the format has nothing to add.
  nlohmann::ordered_json format_specific;
};

// Errors: what QEMU's tools say behind "Could not open '<name>': " is
// qemu_words() of the status.
absl::StatusOr<ImageReport> make_report(const ImageOpener& opener,
                                        const ImageArgument& image,
                                        bool force_share);

// The lines of `qemu-img info`.
std::string to_text(const ImageReport& report);
// Those of them that only this format has.
std::string format_specific_text(const ImageReport& report);
nlohmann::ordered_json to_json(const ImageReport& report);
// As QEMU prints JSON: members in its order.
std::string print_json(const nlohmann::ordered_json& json);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMAGE_REPORT_H_

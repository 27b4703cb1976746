// AmendPlan: what `amend` is asked for, parsed and compared with the image.
//
// Thread safety: values and pure functions.
#ifndef SPINDLE_FORMATS_QCOW2_AMEND_PLAN_H_
#define SPINDLE_FORMATS_QCOW2_AMEND_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/format.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

struct AmendPlan {
  uint32_t version = kVersion3;
  uint32_t refcount_order = kRefcountOrderOfVersion2;
  bool lazy_refcounts = false;
  bool data_file_is_raw = false;
  // The data file's new name; empty: the image shall name none.
  std::optional<std::string> data_filename;
  std::optional<uint64_t> size_bytes;
};

// Errors: kInvalidArgument and kUnimplemented, with QEMU's messages: for names
// and values that make no sense, and for what an image with this header cannot
// become.  Whether snapshots or clusters stand against it is not asked here,
// nor what key slots shall become.
absl::StatusOr<AmendPlan> plan_amend(const OptionMap& changes,
                                     const Header& header);

// The changes of an encrypted image's key slots among `changes`, by the names
// that luks::plan_change() knows.
OptionMap key_slot_changes(const OptionMap& changes);

// The options that plan_amend() knows, and QEMU's tools list.
std::vector<OptionHelp> amend_options();

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_AMEND_PLAN_H_

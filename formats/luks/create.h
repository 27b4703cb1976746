// Makes a new LUKS volume: a header with one key slot in use.
//
// Thread safety: no state.
#ifndef SPINDLE_FORMATS_LUKS_CREATE_H_
#define SPINDLE_FORMATS_LUKS_CREATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/format.h"
#include "engine/secret_bytes.h"
#include "formats/luks/key_slots.h"

namespace spindle::luks {

struct CreatePlan {
  // Without its key's digest and slots' contents.
  Header header;
  absl::Duration iter_time;
  std::string key_secret;

  // What the header and the slots occupy: the data begin there.
  uint64_t header_area_bytes() const;
};

// From creation options by QEMU's names, each with `prefix` before it
// ("encrypt." in a qcow2); others are left alone.
// Errors: kInvalidArgument names the option; kUnimplemented for what the
// library does not have.
absl::StatusOr<CreatePlan> plan_create(const OptionMap& options,
                                       absl::string_view prefix);

// Writes header and slots, durably, the header last: before that the file is no
// LUKS volume.  Returns the key that encrypts the data; what plan.header did
// not have is in `*header`.
absl::StatusOr<SecretBytes> write_volume(const HeaderArea& area,
                                         const CreatePlan& plan,
                                         absl::Span<const uint8_t> passphrase,
                                         Header* header);

std::vector<OptionHelp> create_options();

// How long trying a passphrase shall take; two seconds if it is not stated.  0
// is as short as it may be. Errors: kInvalidArgument names the option and its
// limit.
absl::StatusOr<absl::Duration> find_iter_time(const OptionMap& options,
                                              absl::string_view prefix);

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_CREATE_H_

// Making a new qcow2 image, byte for byte as QEMU 7.2 lays it out.
//
// Two steps: options become a CreatePlan (no I/O, all checks), and the plan is
// written.  The layout follows from replaying, in memory, the allocations that
// QEMU makes: header, refcount table and refcount block first, then the L1
// table, then what preallocation asks for.
//
// Thread safety: pure functions; one image is created by one thread.
#ifndef SPINDLE_FORMATS_QCOW2_CREATE_H_
#define SPINDLE_FORMATS_QCOW2_CREATE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/secret_bytes.h"
#include "formats/luks/create.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

// A new image's header (everything but the places of its tables), and what
// else create() must know.
struct CreatePlan {
  Header header;
  Preallocation preallocation = Preallocation::kOff;
  // Of an image that is encrypted with LUKS.
  std::optional<luks::CreatePlan> luks = {};
  // Of an encrypted image.
  std::shared_ptr<const SecretBytes> passphrase = nullptr;

  // Clusters that nobody has written read as zeroes, not as noise.
  bool reads_as_zeroes() const {
    return header.crypt_method == kCryptNone ||
           preallocation == Preallocation::kOff || header.extended_l2();
  }
};

// The options "encrypt.*" of a new image.
std::vector<OptionHelp> encryption_options();

// Checks `options` and fills in QEMU's defaults.
// REQUIRES: options.size_bytes has a value.
// Errors: kInvalidArgument for bad values, kNotFound for a secret that is not
// there, kUnimplemented for ciphers that the library does not have.
absl::StatusOr<CreatePlan> plan_create(const CreateOptions& options);

// Writes the image that `plan` describes into `file`, which is empty and can
// grow, and flushes it.
absl::Status write_image(const CreatePlan& plan,
                         const std::shared_ptr<BlockDriver>& file);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_CREATE_H_

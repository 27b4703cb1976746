// What `amend` can change of a LUKS volume: which passphrases open it.
//
// Thread safety: no state; as key_slots.h says.
#ifndef SPINDLE_FORMATS_LUKS_AMEND_H_
#define SPINDLE_FORMATS_LUKS_AMEND_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/amend.h"
#include "engine/format.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "formats/luks/key_slots.h"

namespace spindle::luks {

// What shall be written.
struct SlotChange {
  std::vector<size_t> erased;        // first
  std::optional<FilledSlot> filled;  // then
};

// What `options` ask for: "state=active,new-secret=ID[,keyslot=N]
// [,iter-time=MS]" fills a slot, the first that is inactive unless stated;
// "state=inactive" with keyslot= or old-secret= erases one, or all that a
// passphrase opens.  An active slot is not filled, and the last one not erased,
// unless options.force.  Derives the keys, which takes its time; reads the
// volume, and writes nothing.
absl::StatusOr<SlotChange> plan_change(const HeaderArea& area,
                                       const Header& header,
                                       const SecretBytes& key,
                                       const SecretStore* secrets,
                                       const AmendOptions& options);

// Writes it.  `*header` follows what was done, also on error.
absl::Status write_change(const HeaderArea& area, Header* header,
                          const SlotChange& change);

std::vector<OptionHelp> amend_options();

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_AMEND_H_

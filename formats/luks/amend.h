// What `amend` can change of a LUKS volume: which passphrases open it.
//
// Thread safety: no state; as key_slots.h says.
#ifndef SPINDLE_FORMATS_LUKS_AMEND_H_
#define SPINDLE_FORMATS_LUKS_AMEND_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/amend.h"
#include "engine/format.h"
#include "engine/secret_store.h"
#include "formats/luks/key_slots.h"

namespace spindle::luks {

// "state=active,new-secret=ID[,keyslot=N][,iter-time=MS]" fills a slot, the
// first that is inactive unless stated; "state=inactive" with keyslot= or
// old-secret= erases one, or all that a passphrase opens.  An active slot is
// not filled, and the last one not erased, unless options.force.
// `*header` follows what was done, also on error.
absl::Status amend_slots(const HeaderArea& area, Header* header,
                         const SecretBytes& key, const SecretStore* secrets,
                         const AmendOptions& options);

std::vector<OptionHelp> amend_options();

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_AMEND_H_

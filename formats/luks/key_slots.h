// The eight key slots of a LUKS volume: each holds the volume's key, split and
// encrypted with a key that comes from a passphrase.
//
// Thread safety: no state.  Changes of one volume's slots one at a time; reads
// and writes of its data do not touch them.
#ifndef SPINDLE_FORMATS_LUKS_KEY_SLOTS_H_
#define SPINDLE_FORMATS_LUKS_KEY_SLOTS_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/byte_channel.h"
#include "engine/secret_bytes.h"
#include "formats/luks/header.h"

namespace spindle::luks {

// Where a volume's header begins: a file of its own has it at 0; qcow2 has it
// in a run of clusters.
struct HeaderArea {
  ByteChannel* channel;
  uint64_t offset_bytes = 0;
};

// `area_bytes`: how much there is of it.
absl::StatusOr<Header> read_header(const HeaderArea& area, uint64_t area_bytes);

// The volume's key, from the first active slot that `passphrase` opens.
// Errors: kPermissionDenied if it opens none; kUnimplemented for more than
// kMaxIterations, so that a header does not decide how long this takes.
absl::StatusOr<SecretBytes> unlock(const HeaderArea& area, const Header& header,
                                   absl::Span<const uint8_t> passphrase);

// The same from one slot; nothing if `passphrase` does not open it.
// REQUIRES: header.slots[number].active.
absl::StatusOr<std::optional<SecretBytes>> unlock_slot(
    const HeaderArea& area, const Header& header, size_t number,
    absl::Span<const uint8_t> passphrase);

// Whether `key` is the one that the header knows.
absl::StatusOr<bool> is_key_of(const Header& header, const SecretBytes& key);

// A slot as it will be, with its key material, encrypted.
struct FilledSlot {
  size_t number = 0;
  KeySlot slot;
  SecretBytes material;
};

// What makes `passphrase` open the slot `number`; deriving a key from it takes
// about `time`, and so does this.  No I/O.
absl::StatusOr<FilledSlot> prepare_slot(const Header& header, size_t number,
                                        absl::Span<const uint8_t> passphrase,
                                        const SecretBytes& key,
                                        absl::Duration time);

// Writes it, durably.  The slot becomes active by one write to one sector,
// after all else is durable.  On error the slot is inactive, as it was,
// durably, unless the error says otherwise. REQUIRES: the slot is inactive;
// `filled` was prepared for this header.
absl::Status write_slot(const HeaderArea& area, Header* header,
                        const FilledSlot& filled);

// Overwrites the slot's key material, durably, and only then calls the slot
// inactive, durably: whatever happens between, what an inactive slot once held
// is gone.  On error `*header` says whether the slot is still called active; it
// may open no more.
absl::Status erase_slot(const HeaderArea& area, Header* header, size_t number);

// What a new header says to know its key by, and how long that takes.
absl::Status set_key_digest(Header* header, const SecretBytes& key,
                            absl::Duration time);

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_KEY_SLOTS_H_

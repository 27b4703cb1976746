// Errors as absl::Status, with the errno of a failed system call kept as a
// payload: a hypervisor must tell the guest ENOSPC from EIO.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_ERRORS_H_
#define SPINDLE_ENGINE_ERRORS_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace spindle {

// A Status for the failed system call that `what` describes ("preadv of 'a.img'
// at offset 512"); its code follows from `error_number`, its message ends in
// the errno's text, and errno_of() gives the number back.
// REQUIRES: error_number > 0.
absl::Status errno_status(int error_number, absl::string_view what);

// `status`, with this errno for whoever must be told one.
absl::Status with_errno(int error_number, absl::Status status);

// `status`, with this errno for whoever must be told one.
// REQUIRES: error_number > 0; !status.ok().
absl::Status with_errno(int error_number, absl::Status status);

// The errno that `status` carries, if it has one.
std::optional<int> errno_of(const absl::Status& status);

// The errno that a guest or a C caller should see for `status`: the one that it
// carries, or the one that fits its code (kOutOfRange: EINVAL,
// kResourceExhausted: ENOSPC, kCancelled: ECANCELED, ...).  0 for OK.
int errno_for(const absl::Status& status);

// `status` with `context` and ": " before its message; code and payloads stay.
absl::Status with_context(const absl::Status& status,
                          absl::string_view context);

// Programs that stand in for QEMU's say what those say, to the letter; a
// message for people who search for the cause (field, value, limit) is another.
// A status can carry both.
//
// `status`, for which QEMU's tools have the words `words`.
absl::Status with_qemu_words(absl::Status status, absl::string_view words);
// Those words; where there are none, the message.
std::string qemu_words(const absl::Status& status);
// with_context(), and "<words>: " before QEMU's words; nothing if `words` is
// empty.
absl::Status with_contexts(const absl::Status& status,
                           absl::string_view context, absl::string_view words);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_ERRORS_H_

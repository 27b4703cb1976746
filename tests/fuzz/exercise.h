// What a fuzzer does with an image: checks it, maps it, reads it, writes a
// little to it, and checks it again.
//
// Whatever the image is, nothing may crash, read what it must not, or take
// long; what is written is read back; and an image that a check found sound is
// sound afterwards.  A violation aborts.
//
// Thread safety: none; a fuzzer has one thread.
#ifndef SPINDLE_TESTS_FUZZ_EXERCISE_H_
#define SPINDLE_TESTS_FUZZ_EXERCISE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/secret_store.h"

namespace spindle::testing {

// How many bytes at the start of a fuzzer's input say what is done; the rest
// is the image, or what goes into one.
inline constexpr size_t kProgramBytes = 16;

// What opens encrypted images is called "s".
std::shared_ptr<const SecretStore> fuzz_secrets();

// `program`: kProgramBytes bytes, each pair an operation and its place.
void exercise_image(absl::string_view image, absl::Span<const uint8_t> program);

// Aborts, and says what was expected.
void require(bool condition, absl::string_view what);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FUZZ_EXERCISE_H_

// What QEMU's tools say of a header that they refuse.
//
// parse_header() says more, by field, value and limit; programs that stand in
// for QEMU's need these words.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_QCOW2_HEADER_WORDS_H_
#define SPINDLE_FORMATS_QCOW2_HEADER_WORDS_H_

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"

namespace spindle::qcow2 {

// For the first bytes of a file, as parse_header() gets them.  Empty if they
// have no words of their own for it.
std::string header_words(absl::Span<const uint8_t> head);

// For the incompatible feature bits `unknown`, not 0; `name_of` is what the
// image calls one, or empty.
std::string unknown_feature_words(
    uint64_t unknown, absl::FunctionRef<std::string(int bit)> name_of);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_HEADER_WORDS_H_

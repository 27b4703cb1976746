// What a fuzzer does with an image of a format that knows reads and writes, and
// little more.
//
// What is said to read as zeroes does; what is written is read back, now and
// after the image was opened anew, unless a check says that it is in two
// places' use; what a check found sound is sound afterwards; an image that is
// refused is as it was.  A violation aborts.
//
// Thread safety: none; a fuzzer has one thread.
#ifndef SPINDLE_TESTS_FUZZ_SIMPLE_FORMAT_H_
#define SPINDLE_TESTS_FUZZ_SIMPLE_FORMAT_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/format.h"

namespace spindle::testing {

struct SimpleFormat {
  const ImageFormat* format = nullptr;
  // What it is opened with, besides.
  OptionMap driver_options = {};
  OpenContext context = {};
};

// `program`: kProgramBytes bytes (exercise.h), each pair an operation and its
// place.
void exercise_simple_format(const SimpleFormat& format,
                            absl::Span<const uint8_t> program,
                            absl::string_view image);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FUZZ_SIMPLE_FORMAT_H_

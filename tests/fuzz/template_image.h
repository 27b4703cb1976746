// A small sound image whose structures a fuzzer replaces: clusters of 512
// bytes, a few of them written, one of them compressed, a snapshot.
//
// Thread safety: none; a fuzzer has one thread.
#ifndef SPINDLE_TESTS_FUZZ_TEMPLATE_IMAGE_H_
#define SPINDLE_TESTS_FUZZ_TEMPLATE_IMAGE_H_

#include <cstdint>
#include <string>

#include "formats/qcow2/header.h"

namespace spindle::testing {

inline constexpr uint64_t kTemplateClusterBytes = 512;

struct TemplateImage {
  std::string file;
  qcow2::Header header;
};

// Made once; the same in every process.
const TemplateImage& template_image();

// `image`'s file with `header` in its first cluster.
std::string with_header(const TemplateImage& image,
                        const qcow2::Header& header);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FUZZ_TEMPLATE_IMAGE_H_

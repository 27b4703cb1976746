// Base images: small, sound images that QEMU makes, with everything in them
// that can be damaged.
//
// Thread safety: values; making them, one thread.
#ifndef SPINDLE_TESTS_DAMAGED_BASE_IMAGE_H_
#define SPINDLE_TESTS_DAMAGED_BASE_IMAGE_H_

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace spindle::testing {

using Bytes = std::vector<uint8_t>;

// How to make one.
struct BaseRecipe {
  std::string name;
  uint64_t cluster_bytes = 65536;
  uint64_t size_bytes = 0;
  std::string options = {};  // of create, besides the cluster size
  bool snapshots = false;
  bool bitmaps = false;
  bool backing = false;
  bool data_file = false;
  // Makes no part of a short run.
  bool only_in_long_runs = false;
};
// For GoogleTest.
inline void PrintTo(const BaseRecipe& recipe, std::ostream* out) {
  *out << recipe.name;
}
const std::vector<BaseRecipe>& base_recipes();

// Other files that the image names, each as it is while the image is sound.
struct Companion {
  std::string path;
  Bytes bytes;
};

struct BaseImage {
  BaseRecipe recipe;
  Bytes bytes;
  std::vector<Companion> companions;
};

// Runs qemu-img and qemu-io.  The companions' files exist afterwards; whoever
// called this removes them.
absl::StatusOr<BaseImage> make_base(const BaseRecipe& recipe);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DAMAGED_BASE_IMAGE_H_

// Edits: one-at-a-time changes that qemu-io and we can both make.
//
// Thread safety: values.
#ifndef SPINDLE_TESTS_DIFFERENTIAL_EDITS_H_
#define SPINDLE_TESTS_DIFFERENTIAL_EDITS_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "engine/sector.h"
#include "tests/support/model_disk.h"

namespace spindle::testing {

struct Edit {
  enum class Kind { kWrite, kZero, kZeroUnmap, kDiscard, kCompressed };
  Kind kind = Kind::kWrite;
  ByteRange range;
  uint8_t pattern = 0;  // of a write, compressed or not
};

// "write -P 7 512 1024", "write -z -u ...", "discard ...".
std::string qemu_io_command(const Edit& edit);
std::vector<std::string> qemu_io_commands(const std::vector<Edit>& edits);

// Does the same to `device`.
absl::Status apply(const Edit& edit, BlockDevice& device);
// Does it with the model's bytes in place of the pattern, and tells the model.
absl::Status apply(const Edit& edit, BlockDevice& device, ModelDisk& model);

struct EditChoice {
  uint64_t length_bytes = 0;   // of the image
  uint64_t cluster_bytes = 0;  // ranges cluster around its multiples
  size_t count = 40;
  bool compress = false;  // some of them, over whatever is there
};
// Clusters for compressed data, each another one: QEMU does not overwrite with
// such.
std::vector<Edit> choose_compressed(std::mt19937_64& random,
                                    const EditChoice& choice);
// Whole clusters, parts of them, and runs over several; in sectors.
std::vector<Edit> choose_edits(std::mt19937_64& random,
                               const EditChoice& choice);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DIFFERENTIAL_EDITS_H_

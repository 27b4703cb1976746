// Every access to an image's file fails once, or from then on: the caller
// learns of it, what was readable stays readable, and the file is never more
// damaged than by leaked clusters.
//
// Thread safety: one thread.
#ifndef SPINDLE_TESTS_FORMATS_CLUSTER_ERROR_INJECTION_H_
#define SPINDLE_TESTS_FORMATS_CLUSTER_ERROR_INJECTION_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "engine/access.h"
#include "engine/sector.h"
#include "tests/formats/qcow2/memory_image.h"

namespace spindle::testing {

struct Step {
  enum class Kind {
    kWrite,
    kCompressed,
    kDiscard,
    kZero,
    kZeroAndUnmap,
    kFlush
  };
  Kind kind;
  ByteRange range = {};
  uint8_t value = 0;
};

inline Step write(uint64_t offset, uint64_t length, uint8_t value) {
  return {Step::Kind::kWrite, {offset, length}, value};
}
inline Step compressed(uint64_t offset, uint64_t length, uint8_t value) {
  return {Step::Kind::kCompressed, {offset, length}, value};
}
inline Step discard(uint64_t offset, uint64_t length) {
  return {Step::Kind::kDiscard, {offset, length}};
}
inline Step zero(uint64_t offset, uint64_t length) {
  return {Step::Kind::kZero, {offset, length}};
}
inline Step zero_and_unmap(uint64_t offset, uint64_t length) {
  return {Step::Kind::kZeroAndUnmap, {offset, length}};
}
inline Step flush() { return {Step::Kind::kFlush}; }

struct FailureScenario {
  std::string name;
  MemoryImageOptions options;
  std::vector<Step> setup;  // before anything fails, flushed
  std::vector<Step> steps;
  // What it is about: some of the accesses that fail are for these.  (The usual
  // ones of a qcow2.)
  std::set<Purpose> purposes = {Purpose::kClusterAlloc, Purpose::kL2Update,
                                Purpose::kRefblockUpdate,
                                Purpose::kFlushToDisk};
  // The file is nearly as long as its data, so that freed clusters are wanted
  // before a flush.
  bool allocations_run_rounds = false;
};

// Runs the scenario once for each access that it makes and each kind of error;
// a backing file is filled with 'b'.
void fail_every_access(const FailureScenario& scenario);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_CLUSTER_ERROR_INJECTION_H_

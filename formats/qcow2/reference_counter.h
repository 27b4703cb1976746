// ReferenceCounter: how many references to each host cluster a check has found.
//
// A packed array with the image's own refcount width, one entry per cluster of
// the file as long as it really is and one more (the last cluster may end
// beyond the file).  Offsets in the image never size it.  An entry that is full
// stays full.
//
// Thread safety: add() and get(), from any thread; set() and clear() by one
// thread with no other call in progress.
#ifndef SPINDLE_FORMATS_QCOW2_REFERENCE_COUNTER_H_
#define SPINDLE_FORMATS_QCOW2_REFERENCE_COUNTER_H_

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "absl/status/statusor.h"

namespace spindle::qcow2 {

class ReferenceCounter {
 public:
  // Errors: kResourceExhausted if there is not enough memory.
  static absl::StatusOr<ReferenceCounter> create(uint64_t cluster_count,
                                                 uint32_t refcount_order);

  uint64_t cluster_count() const { return cluster_count_; }
  uint64_t max_refcount() const { return max_refcount_; }

  // False if the entry is full.  REQUIRES: cluster < cluster_count().
  bool add(uint64_t cluster);
  uint64_t get(uint64_t cluster) const;
  // REQUIRES: value <= max_refcount().
  void set(uint64_t cluster, uint64_t value);
  void clear();

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };

  ReferenceCounter(uint64_t cluster_count, uint32_t refcount_order);
  // Entries below a byte, as in a refcount block.
  bool add_bits(uint64_t cluster);

  uint64_t cluster_count_;
  uint32_t order_;
  uint64_t max_refcount_;
  // From calloc(): pages that nobody touches take no memory.
  std::unique_ptr<uint8_t, Free> bytes_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_REFERENCE_COUNTER_H_

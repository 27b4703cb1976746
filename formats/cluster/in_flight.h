// InFlight: the host clusters that requests are reading or writing right now.
//
// Between looking a cluster up and finishing the I/O on it, its host cluster is
// pinned, and a pinned cluster that is freed meanwhile does not become
// allocatable (rule 1 of DESIGN.md).  A pin is taken while the entry that names
// the cluster is locked; whoever drops the entry takes that lock exclusively,
// so once an entry is gone no new pins arrive through it, and a count of zero
// stays zero.
//
// Counters are shared by hash: a pin on another cluster of the same slot can
// delay a free, never allow one too early.
//
// Thread safety: every method, from any thread; no lock, no allocation.
#ifndef SPINDLE_FORMATS_CLUSTER_IN_FLIGHT_H_
#define SPINDLE_FORMATS_CLUSTER_IN_FLIGHT_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "formats/cluster/address.h"

namespace spindle {

class InFlight {
 public:
  // A pin on a run of clusters, given back by the destructor.
  class Pin {
   public:
    Pin() = default;
    Pin(InFlight* owner, HostClusters clusters)
        : owner_(owner), clusters_(clusters) {
      owner_->add(clusters_, 1);
    }
    Pin(Pin&& other) noexcept
        : owner_(other.owner_), clusters_(other.clusters_) {
      other.owner_ = nullptr;
    }
    Pin& operator=(Pin&& other) noexcept {
      if (this != &other) {
        release();
        owner_ = other.owner_;
        clusters_ = other.clusters_;
        other.owner_ = nullptr;
      }
      return *this;
    }
    ~Pin() { release(); }

    void release() {
      if (owner_ != nullptr) owner_->add(clusters_, -1);
      owner_ = nullptr;
    }

   private:
    InFlight* owner_ = nullptr;
    HostClusters clusters_;
  };

  bool is_pinned(uint64_t cluster) const {
    return slots_[slot_of(cluster)].load(std::memory_order_acquire) != 0;
  }

 private:
  static constexpr size_t kSlots = 4096;
  static constexpr size_t slot_of(uint64_t cluster) { return cluster % kSlots; }

  void add(HostClusters clusters, int32_t delta) {
    for (uint64_t i = 0; i < clusters.count; ++i) {
      slots_[slot_of(clusters.first + i)].fetch_add(delta,
                                                    std::memory_order_acq_rel);
    }
  }

  std::array<std::atomic<int32_t>, kSlots> slots_{};
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_IN_FLIGHT_H_

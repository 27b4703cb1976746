#include "formats/qcow2/reference_counter.h"

#include <atomic>
#include <cstring>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"

namespace spindle::qcow2 {
namespace {

uint64_t length_bytes(uint64_t cluster_count, uint32_t order) {
  return order >= 3 ? cluster_count << (order - 3)
                    : (cluster_count >> (3 - order)) + 1;
}

// Entries of a byte or more, in the machine's own order.
template <typename T>
std::atomic_ref<T> entry(uint8_t* bytes, uint64_t cluster) {
  return std::atomic_ref<T>(reinterpret_cast<T*>(bytes)[cluster]);
}

template <typename T>
bool add_to(uint8_t* bytes, uint64_t cluster) {
  const std::atomic_ref<T> at = entry<T>(bytes, cluster);
  T old = at.load(std::memory_order_relaxed);
  do {
    if (old == std::numeric_limits<T>::max()) return false;
  } while (!at.compare_exchange_weak(old, static_cast<T>(old + 1),
                                     std::memory_order_relaxed));
  return true;
}

}  // namespace

ReferenceCounter::ReferenceCounter(uint64_t cluster_count,
                                   uint32_t refcount_order)
    : cluster_count_(cluster_count),
      order_(refcount_order),
      max_refcount_(refcount_order == 6
                        ? ~uint64_t{0}
                        : (uint64_t{1} << (1u << refcount_order)) - 1),
      bytes_(static_cast<uint8_t*>(
          std::calloc(length_bytes(cluster_count, refcount_order), 1))) {}

absl::StatusOr<ReferenceCounter> ReferenceCounter::create(
    uint64_t cluster_count, uint32_t refcount_order) {
  ReferenceCounter counter(cluster_count, refcount_order);
  if (counter.bytes_ == nullptr) {
    return errno_status(ENOMEM,
                        absl::StrCat("the references to ", cluster_count,
                                     " clusters do not fit into memory"));
  }
  return counter;
}

bool ReferenceCounter::add(uint64_t cluster) {
  switch (order_) {
    case 3:
      return add_to<uint8_t>(bytes_.get(), cluster);
    case 4:
      return add_to<uint16_t>(bytes_.get(), cluster);
    case 5:
      return add_to<uint32_t>(bytes_.get(), cluster);
    case 6:
      return add_to<uint64_t>(bytes_.get(), cluster);
    default:
      return add_bits(cluster);
  }
}

bool ReferenceCounter::add_bits(uint64_t cluster) {
  const uint32_t shift = static_cast<uint32_t>(cluster & ((8u >> order_) - 1))
                         << order_;
  const uint8_t mask = static_cast<uint8_t>(max_refcount_ << shift);
  const std::atomic_ref<uint8_t> at =
      entry<uint8_t>(bytes_.get(), cluster >> (3 - order_));
  uint8_t old = at.load(std::memory_order_relaxed);
  do {
    if ((old & mask) == mask) return false;
  } while (!at.compare_exchange_weak(old,
                                     static_cast<uint8_t>(old + (1u << shift)),
                                     std::memory_order_relaxed));
  return true;
}

uint64_t ReferenceCounter::get(uint64_t cluster) const {
  uint8_t* const bytes = bytes_.get();
  constexpr auto kOrder = std::memory_order_relaxed;
  switch (order_) {
    case 3:
      return entry<uint8_t>(bytes, cluster).load(kOrder);
    case 4:
      return entry<uint16_t>(bytes, cluster).load(kOrder);
    case 5:
      return entry<uint32_t>(bytes, cluster).load(kOrder);
    case 6:
      return entry<uint64_t>(bytes, cluster).load(kOrder);
    default: {
      const uint32_t shift =
          static_cast<uint32_t>(cluster & ((8u >> order_) - 1)) << order_;
      return (entry<uint8_t>(bytes, cluster >> (3 - order_)).load(kOrder) >>
              shift) &
             max_refcount_;
    }
  }
}

void ReferenceCounter::set(uint64_t cluster, uint64_t value) {
  uint8_t* const bytes = bytes_.get();
  switch (order_) {
    case 3:
      bytes[cluster] = static_cast<uint8_t>(value);
      return;
    case 4:
      reinterpret_cast<uint16_t*>(bytes)[cluster] =
          static_cast<uint16_t>(value);
      return;
    case 5:
      reinterpret_cast<uint32_t*>(bytes)[cluster] =
          static_cast<uint32_t>(value);
      return;
    case 6:
      reinterpret_cast<uint64_t*>(bytes)[cluster] = value;
      return;
    default: {
      const uint32_t shift =
          static_cast<uint32_t>(cluster & ((8u >> order_) - 1)) << order_;
      uint8_t& byte = bytes[cluster >> (3 - order_)];
      byte = static_cast<uint8_t>((byte & ~(max_refcount_ << shift)) |
                                  (value << shift));
    }
  }
}

void ReferenceCounter::clear() {
  std::memset(bytes_.get(), 0, length_bytes(cluster_count_, order_));
}

}  // namespace spindle::qcow2

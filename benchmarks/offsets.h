// The requests that `qemu-img bench` makes: it begins at -o, goes on by -S and
// wraps at the end of the image.  Our loops use the same ones.
//
// Thread safety: values.
#ifndef SPINDLE_BENCHMARKS_OFFSETS_H_
#define SPINDLE_BENCHMARKS_OFFSETS_H_

#include <cstdint>
#include <vector>

namespace spindle::benchmarks {

struct Workload {
  uint64_t image_bytes = 0;
  uint32_t request_bytes = 4096;
  // Odd in units of request_bytes and large: every block of an image whose
  // length is a power of two is visited before one comes again, and the
  // order is as good as random to caches.
  uint64_t step_bytes = 0;
  uint64_t requests = 0;
  bool writes = false;

  // The offset of the i-th request.
  uint64_t offset(uint64_t i) const { return i * step_bytes % image_bytes; }
};

inline Workload scattered_reads(uint64_t image_bytes, uint64_t requests) {
  constexpr uint32_t kRequestBytes = 4096;
  // About 0.387 of the image, and an odd number of blocks.
  const uint64_t blocks = (image_bytes / kRequestBytes * 387 / 1000) | 1;
  return {.image_bytes = image_bytes,
          .request_bytes = kRequestBytes,
          .step_bytes = blocks * kRequestBytes,
          .requests = requests};
}

inline Workload scattered_writes(uint64_t image_bytes, uint64_t requests) {
  Workload work = scattered_reads(image_bytes, requests);
  work.writes = true;
  return work;
}

// One write every `step_bytes`, to each place once.
inline Workload writes_in_order(uint64_t image_bytes, uint64_t step_bytes) {
  return {.image_bytes = image_bytes,
          .request_bytes = 4096,
          .step_bytes = step_bytes,
          .requests = image_bytes / step_bytes,
          .writes = true};
}

// Where a file holds what the requests ask for: itself, or an image's mapping.
struct HostPlaces {
  uint64_t piece_bytes = 0;
  // One for each piece of the guest's disk; none: the guest's offsets.
  std::vector<uint64_t> offsets;

  uint64_t of(uint64_t guest_offset) const {
    if (offsets.empty()) return guest_offset;
    return offsets[guest_offset / piece_bytes] + guest_offset % piece_bytes;
  }
};

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_OFFSETS_H_

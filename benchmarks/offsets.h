// The offsets that `qemu-img bench` touches: it begins at -o, goes on by -S and
// wraps at the end of the image.  Our loops use the same ones.
//
// Thread safety: a value.
#ifndef SPINDLE_BENCHMARKS_OFFSETS_H_
#define SPINDLE_BENCHMARKS_OFFSETS_H_

#include <cstdint>

namespace spindle::benchmarks {

struct Workload {
  uint64_t image_bytes = 0;
  uint32_t request_bytes = 4096;
  // Odd in units of request_bytes and large: every block of an image whose
  // length is a power of two is visited before one comes again, and the
  // order is as good as random to caches.
  uint64_t step_bytes = 0;
  uint64_t requests = 0;

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

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_OFFSETS_H_

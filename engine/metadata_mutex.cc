#include "engine/metadata_mutex.h"

#include <cstdio>
#include <cstdlib>

namespace spindle {
namespace {

struct HeldByThread {
  int count = 0;
  // Bit r is set while a mutex of rank r is held.
  uint32_t ranks = 0;
};

thread_local HeldByThread held;

}  // namespace

int MetadataMutex::held_by_this_thread() { return held.count; }

void MetadataMutex::note_acquire() {
  const uint32_t bit = uint32_t{1} << static_cast<unsigned>(rank_);
#ifndef NDEBUG
  // Nothing held is of this rank or a later one: x >= bit, for any mask x of
  // ranks, says that its highest rank is at least this.
  if (held.ranks >= bit) {
    std::fprintf(
        stderr,
        "metadata mutex of rank %d acquired while ranks 0x%x are held\n",
        static_cast<int>(rank_), held.ranks);
    std::abort();
  }
#endif
  held.ranks |= bit;
  ++held.count;
}

void MetadataMutex::note_release() {
  held.ranks &= ~(uint32_t{1} << static_cast<unsigned>(rank_));
  --held.count;
}

}  // namespace spindle

// Copying what a guest sees of images into another one.
//
// What reads as zeroes is not written where the target does already, and what
// its backing file has is left to that.  Several pieces are copied at one time,
// each by one worker from its reading to its writing.
//
// Thread safety: one thread; the devices do the rest.
#ifndef SPINDLE_ENGINE_JOBS_COPY_H_
#define SPINDLE_ENGINE_JOBS_COPY_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/block_device.h"
#include "engine/format.h"
#include "engine/jobs/job_options.h"

namespace spindle {

struct CopyOptions {
  JobOptions job;
  // Writes are compressed.
  bool compress = false;
  // A piece is written when those before it have been, so that it lies behind
  // them (compressed, and where the target has no clusters: in any order).
  bool in_order = true;
  // The target reads as zeroes.  Else zeroes are written.
  bool target_reads_as_zeroes = true;
  // What the source itself does not have, the target's backing file has.
  bool target_has_backing = false;
  // Only what the first so many layers of the source's chain have; 0: all that
  // it reads.
  int source_layers = 0;
  // Shorter runs of zeroes among data are written; 0: all zeroes are, as data.
  uint64_t min_zeroes_bytes = 4096;
  // Look for zeroes among data at all.
  bool find_zeroes = true;
  // 0: as fast as it goes.
  uint64_t bytes_per_second = 0;
  // Pieces that are read or written at one time; 0: see pieces_at_once().
  size_t max_pieces = 0;
  // What cannot be read becomes zeroes, and a warning.
  bool salvage = false;
  LogSink log = nullptr;
};

// As many as `options` say, or as make it fastest here: what is compressed
// keeps any number of threads busy; else one more than there are processors,
// since what is read much ahead is out of their caches again when it is
// written. Executors that are made for one copy need be no wider.
size_t pieces_at_once(const CopyOptions& options);

// Copies `sources`, one behind the other.  Neither closes nor flushes.
// REQUIRES: the target is at least as long as the sources' whole sectors
// together.
// Errors: those of the devices, of several that of the lowest offset;
// qemu_words() has the byte.  kCancelled.
absl::Status copy_images(absl::Span<BlockDevice* const> sources,
                         BlockDevice& target, const CopyOptions& options);

absl::Status copy_image(BlockDevice& source, BlockDevice& target,
                        const CopyOptions& options);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_COPY_H_

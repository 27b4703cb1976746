// The loops of a request over what a map of clusters says of its range: look a
// run up, do something with it, go on behind it.
//
// `Run` has a member `bytes`, at least 1 and at most what was asked for.
//
// Thread safety: functions without state.
#ifndef SPINDLE_FORMATS_CLUSTER_RUN_LOOP_H_
#define SPINDLE_FORMATS_CLUSTER_RUN_LOOP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/io_vector.h"

namespace spindle {

// look_up(done, left, &run) describes what lies `done` bytes behind the start,
// `left` bytes of it at most; use(run, done, part) transfers that part of
// `qiov`.  Both return a Status; the first error ends it.
template <typename Run, typename LookUp, typename Use>
absl::Status for_each_run(const IoVector& qiov, const LookUp& look_up,
                          const Use& use) {
  const uint64_t length = qiov.length_bytes();
  for (uint64_t done = 0; done < length;) {
    Run run;
    absl::Status status = look_up(done, length - done, &run);
    if (!status.ok()) return status;
    // The usual case, one run, needs no copy of the vector.
    status = run.bytes == length ? use(run, done, qiov)
                                 : use(run, done, qiov.slice(done, run.bytes));
    if (!status.ok()) return status;
    done += run.bytes;
  }
  return absl::OkStatus();
}

// The same for what must not block: look_up() returns whether it could, use()
// how many bytes it transferred.  Returns how many those were together, up to
// the first that could not be.
template <typename Run, typename LookUp, typename Use>
uint64_t try_each_run(const IoVector& qiov, const LookUp& look_up,
                      const Use& use) {
  const uint64_t length = qiov.length_bytes();
  uint64_t done = 0;
  while (done < length) {
    Run run;
    if (!look_up(done, length - done, &run)) return done;
    const uint64_t bytes = run.bytes == length
                               ? use(run, done, qiov)
                               : use(run, done, qiov.slice(done, run.bytes));
    done += bytes;
    if (bytes != run.bytes) return done;
  }
  return done;
}

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_RUN_LOOP_H_

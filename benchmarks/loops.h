// The loops that are measured: bare preadv and pwritev, synchronous reads of a
// driver and of a BlockDevice, and asynchronous requests at a queue depth. Each
// returns operations per second.
//
// Thread safety: functions; each call is a measurement of its own.
#ifndef SPINDLE_BENCHMARKS_LOOPS_H_
#define SPINDLE_BENCHMARKS_LOOPS_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "benchmarks/offsets.h"
#include "engine/block_device.h"
#include "engine/block_driver.h"

namespace spindle::benchmarks {

// `threads` threads read or write the file `path` at `places`; the i-th request
// is thread (i % threads)'s.
absl::StatusOr<double> bare_transfers(const std::string& path,
                                      const Workload& work, size_t threads,
                                      const HostPlaces& places = {});

absl::StatusOr<double> driver_reads(BlockDriver& driver, const Workload& work);
absl::StatusOr<double> device_reads(BlockDevice& device, const Workload& work);

// One submitting thread keeps `depth` requests in flight through aio_readv or
// aio_writev and reaps the device's completion queue in batches.
absl::StatusOr<double> aio_requests(BlockDevice& device, const Workload& work,
                                    size_t depth);

// The same, with a callback that submits the next request where it runs: on a
// thread of the pool.
absl::StatusOr<double> callback_requests(BlockDevice& device,
                                         const Workload& work, size_t depth);

struct QemuBench {
  std::string path;
  std::string format;
  std::string engine;  // "threads", "native", "io_uring"
  size_t depth = 1;
};
// qemu-img bench; "native" bypasses the page cache, which it must.
absl::StatusOr<double> qemu_img_bench(const QemuBench& bench,
                                      const Workload& work);

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_LOOPS_H_

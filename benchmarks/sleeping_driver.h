// SleepingDriver: a file in memory that takes no lock and sleeps in each
// transfer and each flush, as a disk would.
//
// Real files serialise buffered writes in the kernel, so that the locks of an
// engine above them cannot be seen; here every wait that does not overlap the
// others' is the engine's own.
//
// Thread safety: as every driver.
#ifndef SPINDLE_BENCHMARKS_SLEEPING_DRIVER_H_
#define SPINDLE_BENCHMARKS_SLEEPING_DRIVER_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/block_driver.h"

namespace spindle::benchmarks {

class SleepingDriver final : public BlockDriver {
 public:
  // An empty file that may grow to `capacity_bytes`; null if that much memory
  // is not to be had.  It has all of it from the start: a disk does not cost
  // its users page faults.  It does not sleep before set_delay().
  static std::shared_ptr<SleepingDriver> create(uint64_t capacity_bytes);
  ~SleepingDriver() override;

  // How long each transfer and each flush sleeps from now on.
  void set_delay(absl::Duration delay) {
    delay_ns_ = absl::ToInt64Nanoseconds(delay);
  }

  // How often it was flushed.
  uint64_t flush_count() const { return flush_count_; }

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  absl::string_view format_name() const override { return "memory"; }
  uint64_t length_bytes() const override { return length_; }
  bool read_only() const override { return false; }
  Capabilities capabilities() const override;
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;

 private:
  SleepingDriver(uint8_t* memory, uint64_t capacity_bytes);
  void sleep() const;
  void grow_to(uint64_t length_bytes);

  uint8_t* const memory_;
  const uint64_t capacity_bytes_;
  std::atomic<uint64_t> length_{0};
  std::atomic<int64_t> delay_ns_{0};
  std::atomic<uint64_t> flush_count_{0};
};

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_SLEEPING_DRIVER_H_

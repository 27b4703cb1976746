// FileDriver: an image in a regular file, sector for sector.
//
// Its length is that of the file, to the byte.  Writes beyond the end make the
// file longer.  No lock on the data path, except that writes which make the
// file longer share one with each other.
//
// Thread safety: as BlockDriver.
#ifndef SPINDLE_FORMATS_RAW_FILE_DRIVER_H_
#define SPINDLE_FORMATS_RAW_FILE_DRIVER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/raw/posix_driver.h"
#include "formats/raw/posix_file.h"

namespace spindle {

class FileDriver final : public PosixDriver {
 public:
  // Errors: those of PosixFile::open().
  static absl::StatusOr<std::shared_ptr<FileDriver>> open(
      const std::string& filename, const OpenOptions& options);

  absl::Status write(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;

  Capabilities capabilities() const override;

  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  // kExact: REQUIRES: no write beyond the new length is in flight (it would
  // make the file longer again).
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;
  // There is no metadata to preallocate.
  absl::Status resize(uint64_t length_bytes,
                      Preallocation preallocation) override;

 private:
  // An operation that this file's file system turned out not to have.
  class Support {
   public:
    bool possible() const { return possible_.load(std::memory_order_relaxed); }
    void deny() { possible_.store(false, std::memory_order_relaxed); }

   private:
    std::atomic<bool> possible_{true};
  };

  FileDriver(std::unique_ptr<PosixFile> file, uint64_t length_bytes);

  absl::Status read_beyond_end(const IoVector& qiov, uint64_t offset,
                               uint64_t done) override;
  absl::Status write_at_end(const IoVector& qiov, uint64_t offset)
      ABSL_LOCKS_EXCLUDED(growth_mutex_);
  // `end`, or the end of the file where `end` lies in its last, partial sector.
  uint64_t clip_to_last_sector(uint64_t end) const;

  // fallocate(mode): kUnimplemented, remembered in `support`, where the file
  // system does not have it.
  absl::Status allocate(int mode, ByteRange range, Support* support);
  absl::Status zero_within(ByteRange range, bool may_unmap);
  absl::Status grow_to(uint64_t length_bytes)
      ABSL_LOCKS_EXCLUDED(growth_mutex_);
  // Reserves or writes what the file gains.
  absl::Status grow_with_space(ByteRange gained, Preallocation preallocation)
      ABSL_LOCKS_EXCLUDED(growth_mutex_);
  absl::Status grow_by_truncate(uint64_t length_bytes)
      ABSL_LOCKS_EXCLUDED(growth_mutex_);

  Support punch_hole_;
  Support zero_range_;
  Support preallocate_;

  // Shared by whatever makes the file longer, for its whole system call;
  // exclusive for ftruncate, which would cut off what such a write has just
  // added.  Writes within the file do not take it.
  absl::Mutex growth_mutex_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_FILE_DRIVER_H_

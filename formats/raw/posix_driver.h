// PosixDriver: what the drivers for files and for block devices share: reading,
// flushing, reopening, locks.
//
// Thread safety: as BlockDriver.
#ifndef SPINDLE_FORMATS_RAW_POSIX_DRIVER_H_
#define SPINDLE_FORMATS_RAW_POSIX_DRIVER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/raw/fd_io.h"
#include "formats/raw/posix_file.h"

namespace spindle {

class PosixDriver : public BlockDriver {
 public:
  absl::Status read(const IoVector& qiov, Sector sector) final;
  uint64_t try_read(const IoVector& qiov, Sector sector) final;
  absl::Status flush() final;

  absl::string_view format_name() const final { return "raw"; }
  std::string filename() const final { return file_->filename(); }
  uint64_t length_bytes() const final {
    return length_bytes_.load(std::memory_order_acquire);
  }
  bool read_only() const final { return file_->read_only(); }
  DriverLimits limits() const override;
  ImageInfo info() const final;
  std::optional<StorageIdentity> identity() const final {
    return file_->identity();
  }

  absl::Status reopen(const ReopenOptions& options) final;
  absl::Status inactivate() final;
  absl::Status activate() final;
  absl::Status close() final;

 protected:
  PosixDriver(std::unique_ptr<PosixFile> file, uint64_t length_bytes);

  PosixFile& file() const { return *file_; }
  bool can_try_read() const;

  // The file is at least this long.
  void note_length_at_least(uint64_t length_bytes);
  // The file has exactly this length, and nobody makes it longer meanwhile.
  void set_known_length(uint64_t length_bytes) {
    length_bytes_.store(length_bytes, std::memory_order_release);
  }
  // Asks the kernel, because a failure left the length in doubt.
  void relearn_length();

  // Writes the first `length` bytes of `qiov`.
  absl::Status write_bytes(const IoVector& qiov, uint64_t length_bytes,
                           uint64_t offset);
  // The bytes of `qiov` from `done` on lie beyond the end of the file.
  virtual absl::Status read_beyond_end(const IoVector& qiov, uint64_t offset,
                                       uint64_t done) = 0;

 private:
  enum class TryRead { kNever, kPlain, kNoWait };

  absl::Status finish_short_read(const IoVector& qiov, uint64_t offset,
                                 const Transfer& transfer);
  TryRead initial_try_read() const;

  const std::unique_ptr<PosixFile> file_;
  // Copies of what every request needs.
  const int fd_;
  uint32_t unit_bytes_;  // changes while no request is in flight
  // What the file is known to have.  Grows with each write beyond it.
  std::atomic<uint64_t> length_bytes_;
  // Becomes kNever once the kernel has said that it does not know RWF_NOWAIT
  // here.
  std::atomic<TryRead> try_read_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_POSIX_DRIVER_H_

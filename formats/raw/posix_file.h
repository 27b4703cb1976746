// PosixFile: an image's file or block device as an open descriptor, with the
// locks that it holds on it and the state of its flushes.
//
// The descriptor's number stays the same for the life of the object: reopening
// puts a new open file under it (dup3), which is atomic, so that requests in
// flight need no lock and finish on the file they began with.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_RAW_POSIX_FILE_H_
#define SPINDLE_FORMATS_RAW_POSIX_FILE_H_

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
#include "formats/raw/file_locks.h"
#include "formats/raw/owned_fd.h"
#include "formats/raw/sync_rounds.h"

namespace spindle {

enum class PosixFileKind { kRegular, kBlockDevice };

class PosixFile {
 public:
  // Opens `filename`, which must be of `kind`, and takes the locks.
  // Errors: kInvalidArgument for another kind of file or where O_DIRECT is not
  // supported, kUnavailable where somebody else's locks forbid it, or those of
  // open(2).
  static absl::StatusOr<std::unique_ptr<PosixFile>> open(
      const std::string& filename, PosixFileKind kind,
      const OpenOptions& options);
  PosixFile(const PosixFile&) = delete;
  PosixFile& operator=(const PosixFile&) = delete;

  int fd() const { return fd_number_; }
  // The same file through the page cache: for what O_DIRECT cannot express.
  // Equals fd() unless direct().
  int buffered_fd() const { return buffered_fd_number_; }

  const std::string& filename() const { return filename_; }
  bool direct() const { return direct_; }
  // What offsets, lengths and memory are multiples of: 1, or more if direct().
  uint32_t unit_bytes() const { return unit_bytes_; }
  // Nothing that the file system does ever waits for a device.
  bool on_tmpfs() const { return on_tmpfs_; }
  bool passes_discard() const { return options_.pass_discard_through; }
  bool read_only() const { return read_only_.load(std::memory_order_acquire); }
  StorageIdentity identity() const { return identity_; }

  // See BlockDriver::flush().
  absl::Status flush();

  // See BlockDriver::reopen().  Opens the file anew even if nothing changes, so
  // that a failed flush is forgotten.
  absl::Status reopen(const ReopenOptions& options) ABSL_LOCKS_EXCLUDED(mutex_);

  // Gives up the locks, and takes them again.
  absl::Status release_locks() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status take_locks() ABSL_LOCKS_EXCLUDED(mutex_);

  // The length of a regular file by fstat, of a block device by ioctl.
  absl::StatusOr<uint64_t> measure_length() const;

  // A Status for a system call that failed with `error_number`: "pwritev of
  // 'a.img' at offset 512: No space left on device".
  absl::Status error(int error_number, absl::string_view call) const;
  absl::Status error_at(int error_number, absl::string_view call,
                        uint64_t offset) const;

 private:
  PosixFile(const std::string& filename, PosixFileKind kind,
            const OpenOptions& options);

  absl::Status open_first();
  absl::Status learn_facts();
  FileUse use_for(bool read_only) const;
  static int open_flags(bool read_only, bool direct);
  absl::StatusOr<OwnedFd> open_again(int flags) const;
  // What reopen() puts in place of the open file.
  struct Successor {
    OwnedFd fd;
    OwnedFd twin;  // valid if it is direct
    uint32_t unit_bytes = 1;
  };
  absl::StatusOr<Successor> open_successor(bool read_only, bool direct) const;
  absl::Status put_in_place(Successor successor, bool direct);
  absl::Status check_kind(unsigned mode) const;

  const std::string filename_;
  const PosixFileKind kind_;
  const OpenOptions options_;

  // Set by open(), constant from then on.
  OwnedFd fd_;
  int fd_number_ = -1;
  bool on_tmpfs_ = false;
  StorageIdentity identity_;
  // These change with direct_, while no request is in flight.
  bool direct_;
  OwnedFd buffered_fd_;
  int buffered_fd_number_ = -1;
  uint32_t unit_bytes_ = 1;

  std::atomic<bool> read_only_;
  std::atomic<bool> no_flush_;
  SyncRounds sync_rounds_;

  // Held across open and fcntl when the access mode changes, so that the locks
  // on the file always fit the descriptor.  The data path does not take it.
  absl::Mutex mutex_;
  FileUse use_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_POSIX_FILE_H_

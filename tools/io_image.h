// IoImage: the image that spindle-io has open, and the asynchronous requests
// that it has under way.
//
// Thread safety: one thread.  Completions are collected there, too.
#ifndef SPINDLE_TOOLS_IO_IMAGE_H_
#define SPINDLE_TOOLS_IO_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/block_device.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/secret_store.h"
#include "formats/filters/blkdebug_driver.h"
#include "threadpool/executor.h"
#include "tools/io_target.h"

namespace spindle {

// The memory of one request.
class IoBuffer {
 public:
  IoBuffer(uint64_t length_bytes, bool misaligned, uint8_t fill);
  uint8_t* data() { return bytes_.data() + skip_; }
  absl::Span<uint8_t> bytes() { return {data(), bytes_.size() - skip_}; }

 private:
  size_t skip_;
  std::vector<uint8_t> bytes_;
};

class IoImage {
 public:
  // Called with the result when the request has been collected.
  using Done = std::function<void(const absl::Status& status)>;

  // `secrets` may be null.
  static absl::StatusOr<std::unique_ptr<IoImage>> open(
      const IoTarget& target, std::shared_ptr<const SecretStore> secrets);

  ~IoImage();
  IoImage(const IoImage&) = delete;
  IoImage& operator=(const IoImage&) = delete;

  BlockDevice& device() { return *device_; }
  const IoTarget& target() const { return target_; }
  bool ignores_discards() const { return ignores_discards_; }
  // Whole sectors.
  uint64_t length_bytes() const;
  // What of `qiov` there is an image for: the last sector may be partial.
  // A request that is not empty may have nothing in it.
  IoVector inside(const IoVector& qiov, uint64_t offset) const;
  bool is_outside(uint64_t offset, uint64_t length) const;
  // Makes a raw image that does not end with a sector as long as what is to be
  // written into its last one wants it.
  absl::Status grow_within_sector(uint64_t offset, uint64_t length);
  // By which its own file can be opened once more.
  std::string own_filename() const;

  // What reopen() changes.
  struct Changes {
    std::optional<bool> read_only;
    std::optional<CacheMode> cache_mode;
    OptionMap options;  // by QEMU's names; equal to what is there: nothing
  };
  // Errors are for the user as they are.
  absl::Status reopen(Changes changes);

  // What to submit an asynchronous request with; `done` owns its memory.
  uint64_t track(Done done);
  // Calls `done` of what has finished, and reports what has stopped at a
  // breakpoint; the second until nothing is under way, or `end`.
  void collect_finished() { collect_once(absl::ZeroDuration()); }
  void collect_until(absl::Time end);
  // The second until nothing is under way.  False if what is left is stopped,
  // so that it will never end.
  bool collect_all();
  // Says what has stopped since it was last asked.
  void report_stopped();
  // Readable while something may have finished.
  int event_fd() const { return device_->completion_queue().event_fd(); }
  bool is_idle() const { return under_way_.empty(); }
  bool has_threads() const { return executor_->width() > 0; }

  // The blkdebug below the image; null if there is none.
  BlkdebugDriver* blkdebug() const { return find_blkdebug(&device_->driver()); }

  // Lets go of what is stopped, and waits for what is under way.
  absl::Status close();

 private:
  IoImage(IoTarget target, const OpenedTarget& opened,
          std::unique_ptr<Executor> executor,
          std::unique_ptr<BlockDevice> device);
  void collect_once(absl::Duration timeout);

  const IoTarget target_;
  OptionMap options_;     // the target's, and what reopen() has changed since
  const int overlay_fd_;  // a snapshot's, which has no name; else -1
  bool ignores_discards_;
  const std::unique_ptr<Executor> executor_;  // outlives the device
  const std::unique_ptr<BlockDevice> device_;
  std::map<uint64_t, Done> under_way_;
  uint64_t next_id_ = 0;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_IMAGE_H_

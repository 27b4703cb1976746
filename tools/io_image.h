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
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/block_device.h"
#include "engine/io_vector.h"
#include "threadpool/executor.h"

namespace spindle {

struct IoTarget {
  std::string filename;
  std::string format;  // empty: guess it
  bool read_only = false;
  bool force_share = false;
  // Writes go to an overlay that is gone afterwards.
  bool snapshot = false;
  // Buffers begin where direct I/O does not like it.
  bool misaligned_buffers = false;
  // Discards do nothing.
  bool ignore_discards = false;
  // qemu-io's choice, too.
  CacheMode cache_mode = CacheMode::kWritethrough;
};

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

  static absl::StatusOr<std::unique_ptr<IoImage>> open(const IoTarget& target);

  ~IoImage();
  IoImage(const IoImage&) = delete;
  IoImage& operator=(const IoImage&) = delete;

  BlockDevice& device() { return *device_; }
  const IoTarget& target() const { return target_; }
  // Whole sectors.
  uint64_t length_bytes() const;
  // What of `qiov` there is an image for: the last sector may be partial.
  // A request that is not empty may have nothing in it.
  IoVector inside(const IoVector& qiov, uint64_t offset) const;
  bool is_outside(uint64_t offset, uint64_t length) const;
  // By which its own file can be opened once more.
  std::string own_filename() const;

  // What to submit an asynchronous request with; `done` owns its memory.
  uint64_t track(Done done);
  void collect_finished() { collect(/*all=*/false); }
  void wait_for_all() { collect(/*all=*/true); }

  // Waits for what is under way.
  absl::Status close();

 private:
  IoImage(IoTarget target, int overlay_fd, std::unique_ptr<Executor> executor,
          std::unique_ptr<BlockDevice> device);
  void collect(bool all);

  const IoTarget target_;
  const int overlay_fd_;  // a snapshot's, which has no name; else -1
  const std::unique_ptr<Executor> executor_;  // outlives the device
  const std::unique_ptr<BlockDevice> device_;
  std::map<uint64_t, Done> under_way_;
  uint64_t next_id_ = 0;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_IMAGE_H_

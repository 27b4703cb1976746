#include "engine/jobs/copy_bytes.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/aligned_buffer.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "engine/jobs/job_buffer.h"
#include "engine/run_pieces.h"

namespace spindle {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;

absl::Status failed(absl::string_view what, const absl::Status& status) {
  return with_contexts(
      with_qemu_words(status, std::strerror(errno_for(status))), what, what);
}

absl::Status read(BlockDevice& source, ByteRange range, AlignedBuffer* buffer) {
  const uint64_t end = source.length_bytes();
  const uint64_t there =
      std::min(range.length, end - std::min(end, range.offset));
  std::memset(buffer->data() + there, 0, range.length - there);
  if (there == 0) return absl::OkStatus();
  const absl::Status status =
      source.pread(IoVector(buffer->data(), there), range.offset);
  return status.ok()
             ? status
             : failed("error while reading from input image file", status);
}

absl::Status write(BlockDevice& target, uint64_t offset, uint64_t bytes,
                   AlignedBuffer* buffer) {
  // The last sector may be the source's, whole, and the target's in part.
  const uint64_t end = target.length_bytes();
  const uint64_t there = std::min(bytes, end - std::min(end, offset));
  const absl::Status status =
      target.pwrite(IoVector(buffer->data(), there), offset);
  return status.ok()
             ? status
             : failed("error while writing to output image file", status);
}

}  // namespace

absl::Status copy_bytes(BlockDevice& source, ByteRange range,
                        BlockDevice& target, const JobOptions& options) {
  AlignedBuffer buffers[2];
  for (AlignedBuffer& buffer : buffers) need_job_buffer(kPieceBytes, &buffer);
  const auto piece_at = [&range](uint64_t done) {
    return ByteRange{range.offset + done,
                     std::min(kPieceBytes, range.length - done)};
  };
  absl::Status status =
      range.empty() ? absl::OkStatus() : read(source, piece_at(0), &buffers[0]);
  size_t current = 0;
  for (uint64_t done = 0; done < range.length && status.ok();) {
    options.report(done, range.length);
    status = options.check_cancelled();
    if (!status.ok()) return status;
    const uint64_t bytes = piece_at(done).length;
    const uint64_t next = done + bytes;
    absl::Status written;
    absl::Status was_read;
    run_pieces(options.executor, next < range.length ? 2 : 1, 1, [&](size_t i) {
      if (i == 0) {
        written = write(target, done, bytes, &buffers[current]);
      } else {
        was_read = read(source, piece_at(next), &buffers[1 - current]);
      }
    });
    status = written.ok() ? was_read : written;
    current = 1 - current;
    done = next;
  }
  if (status.ok()) options.report(range.length, range.length);
  return status;
}

}  // namespace spindle

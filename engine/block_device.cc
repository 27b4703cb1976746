#include "engine/block_device.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/block_device_core.h"

namespace spindle {
namespace {

RequestSpec transfer_by_sector(RequestKind kind, Sector sector,
                               const IoVector& qiov, WriteFlags flags = {}) {
  return {.kind = kind,
          .by_sector = true,
          .write_flags = flags,
          .offset = saturated_byte_offset(sector),
          .length = qiov.length_bytes()};
}

RequestSpec transfer_by_byte(RequestKind kind, uint64_t offset_bytes,
                             const IoVector& qiov, WriteFlags flags = {}) {
  return {.kind = kind,
          .write_flags = flags,
          .offset = offset_bytes,
          .length = qiov.length_bytes()};
}

RequestSpec of_range(RequestKind kind, ByteRange range) {
  return {.kind = kind, .offset = range.offset, .length = range.length};
}

RequestSpec zeroes(ByteRange range, WriteZeroesFlags flags) {
  RequestSpec spec = of_range(RequestKind::kWriteZeroes, range);
  spec.zeroes_flags = flags;
  return spec;
}

RequestSpec status_of(ByteRange range, BlockStatusScope scope) {
  RequestSpec spec = of_range(RequestKind::kBlockStatus, range);
  spec.scope = scope;
  return spec;
}

AioRequest* make_request(const RequestSpec& spec, const IoVector* qiov,
                         uint64_t user_data) {
  AioRequest* const request = AioRequest::make();
  request->spec = spec;
  if (qiov != nullptr) request->qiov = *qiov;
  request->user_data = user_data;
  return request;
}

AioRequest* make_request(const RequestSpec& spec, const IoVector* qiov,
                         AioCallback callback) {
  AioRequest* const request = make_request(spec, qiov, uint64_t{0});
  request->callback = std::move(callback);
  return request;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockDevice>> BlockDevice::create(
    std::shared_ptr<BlockDriver> driver, Executor* executor,
    BlockDeviceOptions options) {
  if (driver == nullptr || executor == nullptr) {
    return absl::InvalidArgumentError(
        "a device needs a driver and an executor");
  }
  if (absl::Status limits = DriverTransfer::check_limits(driver->limits());
      !limits.ok()) {
    return limits;
  }
  if (driver->length_bytes() > Core::kMaxLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the image's length, ", driver->length_bytes(),
                     ", is more than ", Core::kMaxLengthBytes));
  }
  std::unique_ptr<CompletionQueue> own_queue;
  if (options.completion_queue == nullptr) {
    absl::StatusOr<std::unique_ptr<CompletionQueue>> made =
        CompletionQueue::create({});
    if (!made.ok()) return made.status();
    own_queue = *std::move(made);
  }
  auto core = std::make_unique<Core>(std::move(driver), executor,
                                     std::move(options), std::move(own_queue));
  return std::unique_ptr<BlockDevice>(new BlockDevice(std::move(core)));
}

BlockDevice::BlockDevice(std::unique_ptr<Core> core) : core_(std::move(core)) {}

BlockDevice::~BlockDevice() { core_->shut_down(); }

uint64_t BlockDevice::length_bytes() const {
  return core_->requests().length_bytes();
}
bool BlockDevice::read_only() const { return core_->requests().read_only(); }
CacheMode BlockDevice::cache_mode() const {
  return core_->requests().cache_mode();
}
BlockDriver& BlockDevice::driver() const { return core_->driver(); }
CompletionQueue& BlockDevice::completion_queue() const {
  return core_->completion_queue();
}

// ---- Synchronous ------------------------------------------------------------

absl::Status BlockDevice::read(const IoVector& qiov, Sector sector) {
  return core_->run_here(transfer_by_sector(RequestKind::kRead, sector, qiov),
                         qiov);
}

absl::Status BlockDevice::write(const IoVector& qiov, Sector sector,
                                WriteFlags flags) {
  return core_->run_here(
      transfer_by_sector(RequestKind::kWrite, sector, qiov, flags), qiov);
}

absl::Status BlockDevice::pread(const IoVector& qiov, uint64_t offset_bytes) {
  return core_->run_here(
      transfer_by_byte(RequestKind::kRead, offset_bytes, qiov), qiov);
}

absl::Status BlockDevice::pwrite(const IoVector& qiov, uint64_t offset_bytes,
                                 WriteFlags flags) {
  return core_->run_here(
      transfer_by_byte(RequestKind::kWrite, offset_bytes, qiov, flags), qiov);
}

absl::Status BlockDevice::flush() {
  return core_->run_here(of_range(RequestKind::kFlush, {}), IoVector());
}

absl::Status BlockDevice::discard(ByteRange range) {
  return core_->run_here(of_range(RequestKind::kDiscard, range), IoVector());
}

absl::Status BlockDevice::write_zeroes(ByteRange range,
                                       WriteZeroesFlags flags) {
  return core_->run_here(zeroes(range, flags), IoVector());
}

absl::Status BlockDevice::write_compressed(const IoVector& qiov, Sector sector,
                                           WriteFlags flags) {
  return core_->run_here(
      transfer_by_sector(RequestKind::kWriteCompressed, sector, qiov, flags),
      qiov);
}

absl::StatusOr<BlockStatus> BlockDevice::block_status(ByteRange range,
                                                      BlockStatusScope scope) {
  BlockStatus result;
  absl::Status status =
      core_->run_here(status_of(range, scope), IoVector(), &result);
  if (!status.ok()) return status;
  return result;
}

// ---- Asynchronous -----------------------------------------------------------

AioHandle BlockDevice::aio_readv(Sector sector, const IoVector& qiov,
                                 uint64_t user_data) {
  const RequestSpec spec = transfer_by_sector(RequestKind::kRead, sector, qiov);
  return core_->submit(make_request(spec, &qiov, user_data));
}

AioHandle BlockDevice::aio_readv(Sector sector, const IoVector& qiov,
                                 AioCallback callback) {
  const RequestSpec spec = transfer_by_sector(RequestKind::kRead, sector, qiov);
  return core_->submit(make_request(spec, &qiov, std::move(callback)));
}

AioHandle BlockDevice::aio_writev(Sector sector, const IoVector& qiov,
                                  uint64_t user_data, WriteFlags flags) {
  const RequestSpec spec =
      transfer_by_sector(RequestKind::kWrite, sector, qiov, flags);
  return core_->submit(make_request(spec, &qiov, user_data));
}

AioHandle BlockDevice::aio_writev(Sector sector, const IoVector& qiov,
                                  AioCallback callback, WriteFlags flags) {
  const RequestSpec spec =
      transfer_by_sector(RequestKind::kWrite, sector, qiov, flags);
  return core_->submit(make_request(spec, &qiov, std::move(callback)));
}

AioHandle BlockDevice::aio_preadv(uint64_t offset_bytes, const IoVector& qiov,
                                  uint64_t user_data) {
  const RequestSpec spec =
      transfer_by_byte(RequestKind::kRead, offset_bytes, qiov);
  return core_->submit(make_request(spec, &qiov, user_data));
}

AioHandle BlockDevice::aio_preadv(uint64_t offset_bytes, const IoVector& qiov,
                                  AioCallback callback) {
  const RequestSpec spec =
      transfer_by_byte(RequestKind::kRead, offset_bytes, qiov);
  return core_->submit(make_request(spec, &qiov, std::move(callback)));
}

AioHandle BlockDevice::aio_pwritev(uint64_t offset_bytes, const IoVector& qiov,
                                   uint64_t user_data, WriteFlags flags) {
  const RequestSpec spec =
      transfer_by_byte(RequestKind::kWrite, offset_bytes, qiov, flags);
  return core_->submit(make_request(spec, &qiov, user_data));
}

AioHandle BlockDevice::aio_pwritev(uint64_t offset_bytes, const IoVector& qiov,
                                   AioCallback callback, WriteFlags flags) {
  const RequestSpec spec =
      transfer_by_byte(RequestKind::kWrite, offset_bytes, qiov, flags);
  return core_->submit(make_request(spec, &qiov, std::move(callback)));
}

AioHandle BlockDevice::aio_flush(uint64_t user_data) {
  return core_->submit(
      make_request(of_range(RequestKind::kFlush, {}), nullptr, user_data));
}

AioHandle BlockDevice::aio_flush(AioCallback callback) {
  return core_->submit(make_request(of_range(RequestKind::kFlush, {}), nullptr,
                                    std::move(callback)));
}

AioHandle BlockDevice::aio_discard(ByteRange range, uint64_t user_data) {
  return core_->submit(
      make_request(of_range(RequestKind::kDiscard, range), nullptr, user_data));
}

AioHandle BlockDevice::aio_discard(ByteRange range, AioCallback callback) {
  return core_->submit(make_request(of_range(RequestKind::kDiscard, range),
                                    nullptr, std::move(callback)));
}

AioHandle BlockDevice::aio_write_zeroes(ByteRange range, WriteZeroesFlags flags,
                                        uint64_t user_data) {
  return core_->submit(make_request(zeroes(range, flags), nullptr, user_data));
}

AioHandle BlockDevice::aio_write_zeroes(ByteRange range, WriteZeroesFlags flags,
                                        AioCallback callback) {
  return core_->submit(
      make_request(zeroes(range, flags), nullptr, std::move(callback)));
}

AioHandle BlockDevice::aio_write_compressed(Sector sector, const IoVector& qiov,
                                            uint64_t user_data,
                                            WriteFlags flags) {
  const RequestSpec spec =
      transfer_by_sector(RequestKind::kWriteCompressed, sector, qiov, flags);
  return core_->submit(make_request(spec, &qiov, user_data));
}

AioHandle BlockDevice::aio_write_compressed(Sector sector, const IoVector& qiov,
                                            AioCallback callback,
                                            WriteFlags flags) {
  const RequestSpec spec =
      transfer_by_sector(RequestKind::kWriteCompressed, sector, qiov, flags);
  return core_->submit(make_request(spec, &qiov, std::move(callback)));
}

AioHandle BlockDevice::aio_block_status(ByteRange range, BlockStatusScope scope,
                                        AioStatusCallback callback) {
  AioRequest* const request =
      make_request(status_of(range, scope), nullptr, uint64_t{0});
  request->status_callback = std::move(callback);
  return core_->submit(request);
}

void BlockDevice::plug() { core_->plug(); }
void BlockDevice::unplug() { core_->unplug(); }

size_t BlockDevice::reap(absl::Span<Completion> out) {
  size_t callbacks = 0;
  const size_t plain = completion_queue().reap(out, &callbacks);
  return plain + callbacks;
}

// ---- Life cycle -------------------------------------------------------------

absl::Status BlockDevice::drain() { return core_->drain(); }
absl::Status BlockDevice::close() { return core_->close(); }
absl::Status BlockDevice::reopen(const ReopenOptions& options,
                                 std::optional<CacheMode> cache_mode) {
  return core_->reopen(options, cache_mode);
}
absl::Status BlockDevice::amend(const AmendOptions& options) {
  return core_->amend(options);
}

absl::Status BlockDevice::apply_snapshot(absl::string_view snapshot) {
  return core_->apply_snapshot(snapshot);
}

absl::Status BlockDevice::set_length(uint64_t length_bytes,
                                     Preallocation preallocation) {
  return core_->set_length(length_bytes, preallocation);
}

void BlockDevice::on_length_change(std::function<void(uint64_t)> listener) {
  core_->add_length_listener(std::move(listener));
}

DeviceCounters BlockDevice::counters() const { return core_->counters().sum(); }

void BlockDevice::set_detect_zeroes(DetectZeroes mode) {
  core_->requests().set_detect_zeroes(mode);
}

void BlockDevice::set_max_in_flight(size_t limit) {
  core_->set_max_in_flight(limit);
}

}  // namespace spindle

#include "tests/stress/workload.h"

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/checked_math.h"
#include "engine/io_vector.h"
#include "engine/sector.h"

namespace spindle::testing {

using Random = std::mt19937_64;

// One request, from its submission to its judgement.
struct Workload::Request {
  Operation operation;
  Mode mode;
  ByteRange range;
  std::atomic<int>* in_flight = nullptr;  // the worker's
  std::vector<uint8_t> memory;
  IoVector qiov;
  ModelDisk::Read read;         // of reads
  ModelDisk::ChangeRef change;  // of changes
  // When its submission began, and when it was over (0: not yet), on the clock
  // of the model's length.
  uint64_t submitting = 0;
  std::shared_ptr<std::atomic<uint64_t>> submitted =
      std::make_shared<std::atomic<uint64_t>>(0);
};

namespace {

bool is_read(Operation operation) {
  return operation == Operation::kRead || operation == Operation::kPread;
}
bool is_write(Operation operation) {
  return operation == Operation::kWrite || operation == Operation::kPwrite ||
         operation == Operation::kWriteCompressed;
}

// How often each operation is chosen, of a hundred.
constexpr std::array<int, kOperationCount> kWeights = {25, 24, 10, 12,
                                                       10, 10, 5,  4};

Operation choose_operation(Random& random) {
  int left = static_cast<int>(random() % 100);
  for (size_t i = 0; i < kOperationCount; ++i) {
    left -= kWeights[i];
    if (left < 0) return static_cast<Operation>(i);
  }
  return Operation::kRead;
}

bool is_by_byte(Operation operation) {
  return operation == Operation::kPread || operation == Operation::kPwrite;
}

// Where requests of a disk may end: those by the sector at the end of its last,
// partial one.
uint64_t limit_of(Operation operation, uint64_t length_bytes) {
  return is_by_byte(operation) ? length_bytes
                               : align_up(length_bytes, kSectorSizeBytes);
}

ByteRange choose_range(Random& random, Operation operation,
                       uint64_t length_bytes, uint64_t most_sectors) {
  if (operation == Operation::kFlush) return {};
  uint64_t most = most_sectors * kSectorSizeBytes;
  if (operation == Operation::kDiscard || operation == Operation::kWriteZeroes)
    most *= 4;
  // Short ones are as likely as long ones; half of all meet in a hot eighth.
  most = std::max<uint64_t>(kSectorSizeBytes, most >> (random() % 6));
  const uint64_t space = random() % 2 == 0 ? length_bytes : length_bytes / 8;
  uint64_t offset = random() % space;
  uint64_t length = 1 + random() % most;
  if (!is_by_byte(operation)) {
    offset = offset / kSectorSizeBytes * kSectorSizeBytes;
    length =
        (length + kSectorSizeBytes - 1) / kSectorSizeBytes * kSectorSizeBytes;
  }
  return {offset, std::min(length, limit_of(operation, length_bytes) - offset)};
}

// Whole clusters, four at most.
ByteRange widen_to_clusters(ByteRange range, uint64_t cluster_bytes,
                            uint64_t length_bytes) {
  const uint64_t begin = align_down(range.offset, cluster_bytes);
  const uint64_t end = std::min({align_up(range.end(), cluster_bytes),
                                 begin + 4 * cluster_bytes, length_bytes});
  return {begin, end - begin};
}

// Cuts `memory` into up to 20 segments, so that short and long lists occur.
IoVector choose_segments(Random& random, std::vector<uint8_t>& memory) {
  const size_t count = random() % 4 == 0 ? 1 + random() % 20 : 1 + random() % 3;
  std::vector<iovec> segments;
  size_t at = 0;
  for (size_t i = 0; i + 1 < count && at < memory.size(); ++i) {
    const size_t length = random() % (memory.size() - at + 1);
    segments.push_back({memory.data() + at, length});
    at += length;
  }
  segments.push_back({memory.data() + at, memory.size() - at});
  return IoVector(segments);
}

}  // namespace

// One submitter.
class Workload::Worker {
 public:
  Worker(Workload* workload, uint64_t seed)
      : workload_(*workload), random_(seed) {}

  // With threads: until the workload stops.
  void run() {
    ++workload_.workers_;
    while (!workload_.stop_ && !workload_.failed()) {
      if (workload_.paused_) wait_until_alone_is_over();
      step();
      if (random_() % 4 == 0) workload_.reap(0, absl::ZeroDuration());
      while (in_flight_ >= static_cast<int>(workload_.options_.depth)) {
        workload_.reap(1, absl::Milliseconds(2));
      }
    }
    finish_all();
    --workload_.workers_;
  }

  // Without: one choice at random; what else may happen is the caller's.
  void step() {
    if (random_() % 8 == 0) cancel_something();
    if (random_() % 4096 == 0) drain();
    if (random_() % 16 == 0) {
      submit_a_row();
      return;
    }
    auto request = make_request();
    if (request->mode == Mode::kSynchronous) {
      run_synchronously(request.release());
    } else {
      submit(request.release());
    }
  }

  bool may_submit() const {
    return in_flight_ < static_cast<int>(workload_.options_.depth);
  }
  bool is_idle() const { return in_flight_ == 0; }
  Random& random() { return random_; }

 private:
  void finish_all() {
    while (in_flight_ > 0) workload_.reap(1, absl::Milliseconds(2));
  }
  void wait_until_alone_is_over() {
    finish_all();
    ++workload_.waiting_workers_;
    while (workload_.paused_) absl::SleepFor(absl::Microseconds(200));
    --workload_.waiting_workers_;
  }

  // Now and then one that the disk does not have, or not yet.
  uint64_t choose_length() {
    const uint64_t longest = workload_.options_.longest_bytes;
    return longest != 0 && random_() % 16 == 0
               ? longest
               : workload_.model_->length_bytes();
  }
  std::unique_ptr<Request> make_request() {
    const Operation operation = choose_operation(random_);
    const Mode mode = static_cast<Mode>(random_() % kModeCount);
    const uint64_t length = choose_length();
    ByteRange range = choose_range(random_, operation, length,
                                   workload_.options_.most_sectors);
    if (operation == Operation::kWriteCompressed && compresses()) {
      range = widen_to_clusters(range, workload_.options_.cluster_bytes,
                                limit_of(operation, length));
    }
    return begin(operation, mode, range);
  }

  std::unique_ptr<Request> begin(Operation operation, Mode mode,
                                 ByteRange range) {
    auto request = std::make_unique<Request>();
    request->operation = operation;
    request->mode = mode;
    request->range = range;
    request->in_flight = &in_flight_;
    if (is_read(request->operation) || is_write(request->operation)) {
      request->memory.assign(request->range.length, 0xcc);
      request->qiov = choose_segments(random_, request->memory);
    }
    begin_in_model(request.get());
    request->submitting = workload_.model_->length().now();
    ++in_flight_;
    return request;
  }

  // Requests that adjoin, for the engine to make one transfer of.
  void submit_a_row() {
    constexpr int kMostPieces = 16;
    constexpr uint64_t kMostSectors = 4;
    const Operation operation =
        random_() % 2 == 0 ? Operation::kRead : Operation::kWrite;
    ByteRange rest = choose_range(random_, operation, choose_length(),
                                  workload_.options_.most_sectors);
    workload_.device_->plug();
    for (int i = 0; i < kMostPieces && !rest.empty(); ++i) {
      const uint64_t bytes = std::min<uint64_t>(
          rest.length, (1 + random_() % kMostSectors) * kSectorSizeBytes);
      submit(begin(operation, Mode::kQueue, {rest.offset, bytes}).release());
      rest = {rest.offset + bytes, rest.length - bytes};
    }
    workload_.device_->unplug();
  }

  void begin_in_model(Request* request) {
    ModelDisk& model = *workload_.model_;
    switch (request->operation) {
      case Operation::kRead:
      case Operation::kPread:
        request->read = model.begin_read(request->range);
        return;
      case Operation::kWrite:
      case Operation::kPwrite:
      case Operation::kWriteCompressed:
        request->change = model.begin_write(request->range);
        ModelDisk::fill(*request->change, request->qiov);
        return;
      case Operation::kDiscard:
        request->change = model.begin_discard(request->range);
        return;
      case Operation::kWriteZeroes:
        request->change = model.begin_write_zeroes(request->range);
        return;
      case Operation::kFlush:
        return;
    }
  }

  bool compresses() const { return workload_.options_.cluster_bytes != 0; }
  WriteFlags choose_write_flags() { return {.fua = random_() % 64 == 0}; }
  WriteZeroesFlags choose_zero_flags() {
    return {.may_unmap = random_() % 2 == 0, .no_fallback = false};
  }

  void run_synchronously(Request* request) {
    BlockDevice& device = *workload_.device_;
    const Sector sector = Sector::from_byte_offset(request->range.offset);
    absl::Status status;
    switch (request->operation) {
      case Operation::kRead:
        status = device.read(request->qiov, sector);
        break;
      case Operation::kWrite:
        status = device.write(request->qiov, sector, choose_write_flags());
        break;
      case Operation::kPread:
        status = device.pread(request->qiov, request->range.offset);
        break;
      case Operation::kPwrite:
        status = device.pwrite(request->qiov, request->range.offset,
                               choose_write_flags());
        break;
      case Operation::kDiscard:
        status = device.discard(request->range);
        break;
      case Operation::kWriteZeroes:
        status = device.write_zeroes(request->range, choose_zero_flags());
        break;
      case Operation::kFlush:
        status = device.flush();
        break;
      case Operation::kWriteCompressed:
        status = compresses() ? device.write_compressed(request->qiov, sector)
                              : device.write(request->qiov, sector);
        break;
    }
    workload_.finish(request, status);
  }

  void submit(Request* request) {
    // The request may be gone as soon as it was submitted.
    const std::shared_ptr<std::atomic<uint64_t>> submitted = request->submitted;
    if (request->mode == Mode::kQueue) {
      remember(submit_with(request, reinterpret_cast<uint64_t>(request)));
    } else {
      Workload& workload = workload_;
      remember(submit_with(
          request,
          AioCallback([&workload, request](const absl::Status& status) {
            workload.finish(request, status);
          })));
    }
    *submitted = workload_.model_->length().now();
  }

  template <typename Finish>
  AioHandle submit_with(Request* request, Finish finish) {
    BlockDevice& device = *workload_.device_;
    const Sector sector = Sector::from_byte_offset(request->range.offset);
    switch (request->operation) {
      case Operation::kRead:
        return device.aio_readv(sector, request->qiov, std::move(finish));
      case Operation::kWrite:
        return device.aio_writev(sector, request->qiov, std::move(finish),
                                 choose_write_flags());
      case Operation::kPread:
        return device.aio_preadv(request->range.offset, request->qiov,
                                 std::move(finish));
      case Operation::kPwrite:
        return device.aio_pwritev(request->range.offset, request->qiov,
                                  std::move(finish), choose_write_flags());
      case Operation::kDiscard:
        return device.aio_discard(request->range, std::move(finish));
      case Operation::kWriteZeroes:
        return device.aio_write_zeroes(request->range, choose_zero_flags(),
                                       std::move(finish));
      case Operation::kFlush:
        return device.aio_flush(std::move(finish));
      case Operation::kWriteCompressed:
        return compresses() ? device.aio_write_compressed(sector, request->qiov,
                                                          std::move(finish))
                            : device.aio_writev(sector, request->qiov,
                                                std::move(finish));
    }
    return {};
  }

  void remember(AioHandle handle) {
    handles_[next_handle_++ % handles_.size()] = std::move(handle);
    submitted_ = std::min(submitted_ + 1, handles_.size());
  }

  void cancel_something() {
    if (submitted_ == 0) return;
    // Recent ones are the likeliest to wait still.
    const size_t back =
        1 + random_() % std::min<size_t>(submitted_, random_() % 2 ? 2 : 8);
    AioHandle& handle = handles_[(next_handle_ - back) % handles_.size()];
    const AioHandle::CancelResult result = handle.cancel();
    workload_.counts_.note_cancel();
    if (result != AioHandle::CancelResult::kWithdrawn) return;
    workload_.counts_.note_withdrawn();
    // Asked again, it would say the same again.
    handle = AioHandle();
  }

  void drain() {
    const absl::Status status = workload_.device_->drain();
    if (!status.ok())
      workload_.fail(absl::StrCat("drain: ", status.ToString()));
  }

  Workload& workload_;
  Random random_;
  std::atomic<int> in_flight_{0};
  std::array<AioHandle, 8> handles_;
  size_t next_handle_ = 0;
  size_t submitted_ = 0;  // as far as handles_ remembers
};

Workload::Workload(BlockDevice* device, ModelDisk* model, Executor* executor,
                   WorkloadOptions options)
    : device_(device), model_(model), executor_(executor), options_(options) {}

std::string Workload::failure() const {
  absl::MutexLock lock(&mutex_);
  return failure_;
}

void Workload::fail(const std::string& what) {
  absl::MutexLock lock(&mutex_);
  if (failure_.empty()) failure_ = what;
  failed_ = true;
}

std::vector<uint64_t> Workload::lengths_of(const Request& request) const {
  const ModelLength& length = model_->length();
  const uint64_t submitted = *request.submitted;
  return length.possible(request.submitting,
                         submitted != 0 ? submitted : length.now());
}

std::string Workload::judge_length(const Request& request,
                                   const absl::Status& status,
                                   const std::vector<uint64_t>& lengths) const {
  if (request.operation == Operation::kFlush) {
    return status.ok() ? "" : status.ToString();
  }
  const uint64_t end = request.range.end();
  const auto any = [&](auto holds) {
    return std::any_of(lengths.begin(), lengths.end(), holds);
  };
  const auto fits = [&](uint64_t length) {
    return end <= limit_of(request.operation, length);
  };
  // What ended with the disk would no longer be whole clusters.
  const auto is_ragged = [&](uint64_t length) {
    return request.operation == Operation::kWriteCompressed &&
           options_.cluster_bytes != 0 && end < length &&
           !is_aligned(end, options_.cluster_bytes);
  };
  const bool is_right = status.ok()                  ? any(fits)
                        : absl::IsOutOfRange(status) ? any(std::not_fn(fits))
                        : absl::IsInvalidArgument(status) ? any(is_ragged)
                                                          : false;
  if (is_right) return "";
  return absl::StrCat(status.ToString(), "; the disk's length was ",
                      absl::StrJoin(lengths, " or "));
}

// Of the last, partial sector only what the disk has can be told; the rest
// reads as zeroes.
void Workload::judge_read(const Request& request,
                          const std::vector<uint64_t>& lengths) {
  const ByteRange range = request.range;
  uint64_t end = range.end();
  for (const uint64_t length : lengths) {
    if (range.end() <= limit_of(request.operation, length))
      end = std::min(end, length);
  }
  const uint64_t known = end - range.offset;
  const absl::Span<const uint8_t> data(request.memory);
  ModelDisk::Read read = request.read;
  read.range.length = known;
  const auto mismatch = model_->end_read(read, data.first(known));
  if (mismatch) {
    fail(absl::StrCat("read of [", range.offset, ", ", range.end(), "), byte ",
                      mismatch->offset, " is ", mismatch->found, ": ",
                      mismatch->explanation));
  } else if (lengths.size() == 1 &&
             std::any_of(data.begin() + static_cast<ptrdiff_t>(known),
                         data.end(), [](uint8_t byte) { return byte != 0; })) {
    fail(absl::StrCat("read of [", range.offset, ", ", range.end(),
                      "): no zeroes behind the end, ", lengths.front()));
  }
}

void Workload::finish(Request* request, const absl::Status& status) {
  const std::unique_ptr<Request> owner(request);
  const bool withdrawn = absl::IsCancelled(status);
  const std::vector<uint64_t> lengths = lengths_of(*request);
  if (withdrawn) {
    ++cancelled_completions_;
  } else if (const std::string wrong = judge_length(*request, status, lengths);
             !wrong.empty()) {
    fail(absl::StrCat("operation ", static_cast<int>(request->operation),
                      " of [", request->range.offset, ", ",
                      request->range.end(), "): ", wrong));
  }
  const bool refused =
      absl::IsOutOfRange(status) || absl::IsInvalidArgument(status);
  if (is_read(request->operation)) {
    if (status.ok()) {
      judge_read(*request, lengths);
    } else {
      model_->drop_read(request->read);
    }
  } else if (request->change != nullptr) {
    using Outcome = ModelDisk::Outcome;
    model_->end(request->change, withdrawn || refused ? Outcome::kWithdrawn
                                 : status.ok()        ? Outcome::kDone
                                                      : Outcome::kFailed);
  }
  if (refused) counts_.note_refused();
  if (!withdrawn && !refused) counts_.note(request->operation, request->mode);
  --*request->in_flight;
}

size_t Workload::reap(size_t at_least, absl::Duration timeout) {
  std::array<Completion, 16> completions;
  size_t callbacks = 0;
  CompletionQueue& queue = device_->completion_queue();
  const size_t count =
      at_least == 0 ? queue.reap(absl::MakeSpan(completions), &callbacks)
                    : queue.wait(at_least, timeout, absl::MakeSpan(completions),
                                 &callbacks);
  for (size_t i = 0; i < count; ++i) {
    finish(reinterpret_cast<Request*>(completions[i].user_data),
           completions[i].status);
  }
  return count + callbacks;
}

void Workload::do_meanwhile() {
  if (!options_.meanwhile) return;
  const absl::Status status = options_.meanwhile(this);
  if (!status.ok()) fail(absl::StrCat("meanwhile: ", status.ToString()));
}

absl::Status Workload::alone(absl::FunctionRef<absl::Status()> what) {
  if (only_worker_ != nullptr) {
    finish_without_threads(only_worker_);
    return what();
  }
  paused_ = true;
  while (waiting_workers_ < workers_) absl::SleepFor(absl::Microseconds(200));
  const absl::Status status = what();
  paused_ = false;
  while (waiting_workers_ > 0) absl::SleepFor(absl::Microseconds(200));
  return status;
}

void Workload::finish_without_threads(Worker* worker) {
  while (!worker->is_idle()) {
    (void)executor_->run_one();
    reap(0, absl::ZeroDuration());
  }
}

void Workload::run(const std::function<bool(const Counts& counts)>& enough) {
  if (executor_->width() == 0) {
    Worker worker(this, options_.seed);
    only_worker_ = &worker;
    while (!failed() && !enough(counts_)) {
      const uint64_t choice = worker.random()() % 8;
      if (worker.random()() % 1024 == 0) do_meanwhile();
      if (choice < 4 && worker.may_submit()) worker.step();
      if (choice >= 3 && choice < 7) (void)executor_->run_one();
      if (choice >= 6) reap(0, absl::ZeroDuration());
    }
    finish_without_threads(&worker);
    only_worker_ = nullptr;
  } else {
    std::vector<std::unique_ptr<Worker>> workers;
    std::vector<std::thread> threads;
    for (size_t i = 0; i < options_.threads; ++i) {
      workers.push_back(std::make_unique<Worker>(this, options_.seed + i));
      threads.emplace_back([worker = workers.back().get()] { worker->run(); });
    }
    while (!failed() && !enough(counts_)) {
      absl::SleepFor(absl::Milliseconds(10));
      do_meanwhile();
    }
    stop_ = true;
    for (std::thread& thread : threads) thread.join();
  }
  if (cancelled_completions_ != counts_.withdrawn()) {
    fail(absl::StrCat(counts_.withdrawn(), " requests were withdrawn, ",
                      cancelled_completions_.load(),
                      " completed as cancelled"));
  }
}

}  // namespace spindle::testing

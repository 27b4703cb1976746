#include "tests/support/memory_driver.h"

#include <errno.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/checked_math.h"
#include "engine/errors.h"

namespace spindle {
namespace testing {
namespace {

// Shared bytes are copied through relaxed atomics, in words where both sides
// allow it: the contract lets requests overlap, and a plain memcpy would make
// that a data race.
void load_shared(uint8_t* to, uint8_t* from, size_t bytes) {
  size_t i = 0;
  if (reinterpret_cast<uintptr_t>(from) % sizeof(uint64_t) == 0) {
    for (; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t)) {
      const std::atomic_ref<uint64_t> word(
          *reinterpret_cast<uint64_t*>(from + i));
      const uint64_t value = word.load(std::memory_order_relaxed);
      std::memcpy(to + i, &value, sizeof(value));
    }
  }
  for (; i < bytes; ++i) {
    to[i] = std::atomic_ref<uint8_t>(from[i]).load(std::memory_order_relaxed);
  }
}

void store_shared(uint8_t* to, const uint8_t* from, size_t bytes) {
  size_t i = 0;
  if (reinterpret_cast<uintptr_t>(to) % sizeof(uint64_t) == 0) {
    for (; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t)) {
      uint64_t value;
      std::memcpy(&value, from + i, sizeof(value));
      const std::atomic_ref<uint64_t> word(
          *reinterpret_cast<uint64_t*>(to + i));
      word.store(value, std::memory_order_relaxed);
    }
  }
  for (; i < bytes; ++i) {
    std::atomic_ref<uint8_t>(to[i]).store(from[i], std::memory_order_relaxed);
  }
}

bool carries_guest_data(Purpose purpose) {
  switch (purpose) {
    case Purpose::kReadAio:
    case Purpose::kWriteAio:
    case Purpose::kClusterAlloc:
    case Purpose::kCowRead:
    case Purpose::kCowWrite:
    case Purpose::kReadBackingAio:
      return true;
    default:
      return false;
  }
}

// The driver whose next transfer on this thread is one of guest data.
thread_local const void* next_is_data_transfer = nullptr;

}  // namespace

MemoryDriver::MemoryDriver() : MemoryDriver(Options{}) {}

MemoryDriver::MemoryDriver(Options options)
    : options_(std::move(options)), length_bytes_(options_.length_bytes) {}

MemoryDriver::~MemoryDriver() = default;

uint64_t MemoryDriver::length_bytes() const { return length_bytes_.load(); }

std::optional<StorageIdentity> MemoryDriver::identity() const {
  return options_.identity;
}

AccessObserver* MemoryDriver::access_observer() {
  return options_.data_transfer_delay > absl::ZeroDuration() ? this : nullptr;
}

absl::Status MemoryDriver::before_access(const Access& access) {
  next_is_data_transfer = carries_guest_data(access.purpose) ? this : nullptr;
  return absl::OkStatus();
}

void MemoryDriver::sleep_if_data_transfer() {
  if (next_is_data_transfer != this) return;
  next_is_data_transfer = nullptr;
  absl::SleepFor(options_.data_transfer_delay);
}

absl::Status MemoryDriver::read(const IoVector& qiov, Sector sector) {
  ABSL_ASSERT(in_bounds(sector.byte_offset(), qiov.length_bytes()));
  ABSL_ASSERT(qiov.is_aligned(options_.limits.memory_alignment_bytes));
  transfer_count_.fetch_add(1, std::memory_order_relaxed);
  sleep_if_data_transfer();
  // What lies beyond the length was never written, or was zeroed.
  uint64_t offset = sector.byte_offset();
  for (size_t i = 0; i < qiov.segment_count(); ++i) {
    const iovec segment = qiov.segment(i);
    copy_out(offset, static_cast<uint8_t*>(segment.iov_base), segment.iov_len);
    offset += segment.iov_len;
  }
  return absl::OkStatus();
}

absl::Status MemoryDriver::write(const IoVector& qiov, Sector sector) {
  const uint64_t offset = sector.byte_offset();
  const bool grows = options_.capabilities.has(Capability::kGrows);
  ABSL_ASSERT(!options_.read_only);
  ABSL_ASSERT(in_bounds(grows ? 0 : offset, grows ? 0 : qiov.length_bytes()));
  ABSL_ASSERT(qiov.is_aligned(options_.limits.memory_alignment_bytes));
  transfer_count_.fetch_add(1, std::memory_order_relaxed);
  sleep_if_data_transfer();

  uint64_t end = offset + qiov.length_bytes();
  const uint64_t length = length_bytes();
  const uint64_t last_sector_end =
      align_up(length, options_.limits.request_alignment_bytes);
  const bool longer = end > last_sector_end;
  if (longer && end > options_.max_length_bytes) {
    return errno_status(
        ENOSPC, absl::StrCat("write of '", filename(), "' up to offset ", end));
  }
  if (!longer) end = std::min(end, length);
  uint64_t at = offset;
  for (size_t i = 0; i < qiov.segment_count() && at < end; ++i) {
    const iovec segment = qiov.segment(i);
    copy_in(at, static_cast<const uint8_t*>(segment.iov_base),
            std::min<uint64_t>(segment.iov_len, end - at));
    at += segment.iov_len;
  }
  if (longer) return set_length(end, SetLengthMode::kGrowOnly);
  return absl::OkStatus();
}

absl::Status MemoryDriver::flush() {
  flush_count_.fetch_add(1);
  return absl::OkStatus();
}

uint64_t MemoryDriver::try_read(const IoVector& qiov, Sector sector) {
  if (!options_.capabilities.has(Capability::kTryRead)) return 0;
  return read(qiov, sector).ok() ? qiov.length_bytes() : 0;
}

uint64_t MemoryDriver::try_write(const IoVector& qiov, Sector sector) {
  if (!options_.capabilities.has(Capability::kTryWrite)) return 0;
  return write(qiov, sector).ok() ? qiov.length_bytes() : 0;
}

absl::Status MemoryDriver::discard(ByteRange range) {
  if (!options_.capabilities.has(Capability::kDiscard)) {
    return BlockDriver::discard(range);
  }
  ABSL_ASSERT(!options_.read_only && range.end() <= length_bytes());
  zero(range);
  return absl::OkStatus();
}

absl::Status MemoryDriver::write_zeroes(ByteRange range,
                                        WriteZeroesFlags flags) {
  if (!options_.capabilities.has(Capability::kWriteZeroes)) {
    return BlockDriver::write_zeroes(range, flags);
  }
  ABSL_ASSERT(!options_.read_only);
  const uint64_t unit = options_.limits.request_alignment_bytes;
  ABSL_ASSERT(range.end() <= align_up(length_bytes(), unit));
  ABSL_ASSERT(is_aligned(range.offset, unit));
  ABSL_ASSERT(is_aligned(range.length, unit) || range.end() == length_bytes());
  zero(range);
  return absl::OkStatus();
}

absl::StatusOr<BlockStatus> MemoryDriver::block_status(ByteRange range,
                                                       BlockStatusScope scope) {
  if (!options_.capabilities.has(Capability::kBlockStatus)) {
    return BlockDriver::block_status(range, scope);
  }
  ABSL_ASSERT(!range.empty() && range.end() <= length_bytes());
  BlockStatus status;
  bool first = true;
  bool same = true;
  for_each_part(range, false, [&](Chunk* chunk, size_t, ByteRange part) {
    if (first) status.data = chunk != nullptr;
    first = false;
    same = same && status.data == (chunk != nullptr);
    if (same) status.length = part.end() - range.offset;
  });
  status.allocated = true;
  status.zero = !status.data;
  if (status.data) status.host_offset = range.offset;
  status.end_of_image = range.offset + status.length == length_bytes();
  return status;
}

absl::Status MemoryDriver::set_length(uint64_t length_bytes,
                                      SetLengthMode mode) {
  uint64_t old_length = length_bytes_.load();
  if (length_bytes > old_length && length_bytes > options_.max_length_bytes) {
    return errno_status(ENOSPC, absl::StrCat("growing '", filename(), "' to ",
                                             length_bytes, " bytes"));
  }
  if (mode == SetLengthMode::kExact) {
    old_length = length_bytes_.exchange(length_bytes);
    if (old_length > length_bytes) {
      zero(ByteRange{length_bytes, old_length - length_bytes});
    }
    return absl::OkStatus();
  }
  while (old_length < length_bytes &&
         !length_bytes_.compare_exchange_weak(old_length, length_bytes)) {
  }
  return absl::OkStatus();
}

std::string MemoryDriver::content(ByteRange range) const {
  std::string result(range.length, '\0');
  copy_out(range.offset, reinterpret_cast<uint8_t*>(result.data()),
           range.length);
  return result;
}

void MemoryDriver::set_content(uint64_t offset_bytes, absl::string_view bytes) {
  copy_in(offset_bytes, reinterpret_cast<const uint8_t*>(bytes.data()),
          bytes.size());
  const uint64_t end = offset_bytes + bytes.size();
  if (end > length_bytes()) length_bytes_.store(end);
}

MemoryDriver::Chunk* MemoryDriver::find_chunk(uint64_t index) const {
  Shard& shard = shards_[index % kShards];
  absl::ReaderMutexLock lock(&shard.mutex);
  const auto found = shard.chunks.find(index);
  return found == shard.chunks.end() ? nullptr : found->second.get();
}

MemoryDriver::Chunk* MemoryDriver::make_chunk(uint64_t index) {
  if (Chunk* present = find_chunk(index)) return present;
  auto fresh = std::make_unique<Chunk>();
  Shard& shard = shards_[index % kShards];
  absl::MutexLock lock(&shard.mutex);
  return shard.chunks.try_emplace(index, std::move(fresh)).first->second.get();
}

template <typename Visitor>
void MemoryDriver::for_each_part(ByteRange range, bool make,
                                 Visitor visit) const {
  while (!range.empty()) {
    const size_t skip = range.offset % kChunkBytes;
    const uint64_t bytes = std::min<uint64_t>(range.length, kChunkBytes - skip);
    const uint64_t index = range.offset / kChunkBytes;
    Chunk* const chunk =
        make ? const_cast<MemoryDriver*>(this)->make_chunk(index)
             : find_chunk(index);
    visit(chunk, skip, ByteRange{range.offset, bytes});
    range = ByteRange{range.offset + bytes, range.length - bytes};
  }
}

void MemoryDriver::copy_out(uint64_t offset, uint8_t* to,
                            uint64_t bytes) const {
  for_each_part({offset, bytes}, false,
                [&to](Chunk* chunk, size_t skip, ByteRange part) {
                  if (chunk == nullptr) {
                    std::memset(to, 0, part.length);
                  } else {
                    load_shared(to, chunk->bytes.data() + skip, part.length);
                  }
                  to += part.length;
                });
}

void MemoryDriver::copy_in(uint64_t offset, const uint8_t* from,
                           uint64_t bytes) {
  for_each_part({offset, bytes}, true,
                [&from](Chunk* chunk, size_t skip, ByteRange part) {
                  store_shared(chunk->bytes.data() + skip, from, part.length);
                  from += part.length;
                });
}

void MemoryDriver::zero(ByteRange range) {
  static const std::array<uint8_t, kChunkBytes> kZeroes{};
  for_each_part(range, false, [](Chunk* chunk, size_t skip, ByteRange part) {
    if (chunk == nullptr) return;
    store_shared(chunk->bytes.data() + skip, kZeroes.data(), part.length);
  });
}

bool MemoryDriver::in_bounds(uint64_t offset, uint64_t bytes) const {
  const uint64_t unit = options_.limits.request_alignment_bytes;
  return is_aligned(offset | bytes, unit) &&
         offset + bytes <= align_up(length_bytes(), unit);
}

}  // namespace testing
}  // namespace spindle

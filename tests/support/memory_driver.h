// MemoryDriver: a BlockDriver over sparse memory.
//
// It does what the contract says and no more, so that what is tested above it
// is the only suspect.  Its length is exact to the byte.  It takes a lock only
// to find a chunk of its memory, never while it copies, so overlapping requests
// meet as they would in the page cache.
//
// With data_transfer_delay every transfer of guest data sleeps that long,
// without a lock: whether requests run side by side then shows in the clock.
// It learns which transfers those are as the AccessObserver of the ByteChannel
// above it.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_TESTS_SUPPORT_MEMORY_DRIVER_H_
#define SPINDLE_TESTS_SUPPORT_MEMORY_DRIVER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/block_driver.h"

namespace spindle {
namespace testing {

class MemoryDriver : public BlockDriver, private AccessObserver {
 public:
  struct Options {
    uint64_t length_bytes = 0;
    bool read_only = false;
    DriverLimits limits = {};
    // write_zeroes never falls back here, so it honours every flag.
    Capabilities capabilities = {Capability::kDiscard,
                                 Capability::kWriteZeroes,
                                 Capability::kBlockStatus,
                                 Capability::kSetLength,
                                 Capability::kGrows,
                                 Capability::kWriteZeroesMayUnmap,
                                 Capability::kTryRead,
                                 Capability::kTryWrite,
                                 Capability::kWriteZeroesNoFallback};
    // Growing beyond this fails with ENOSPC.
    uint64_t max_length_bytes = UINT64_MAX;
    absl::Duration data_transfer_delay = absl::ZeroDuration();
    std::string filename = "memory";
    std::optional<StorageIdentity> identity = std::nullopt;
  };

  MemoryDriver();
  explicit MemoryDriver(Options options);
  ~MemoryDriver() override;

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;

  absl::string_view format_name() const override { return "memory"; }
  std::string filename() const override { return options_.filename; }
  uint64_t length_bytes() const override;
  bool read_only() const override { return options_.read_only; }
  DriverLimits limits() const override { return options_.limits; }
  Capabilities capabilities() const override { return options_.capabilities; }
  std::optional<StorageIdentity> identity() const override;
  // Null without a delay: try_read() then works through a ByteChannel.
  AccessObserver* access_observer() override;

  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;

  // For tests: the bytes as they are, beyond any alignment.
  // REQUIRES: the range lies within the length; no concurrent set_length().
  std::string content(ByteRange range) const;
  std::string content() const { return content({0, length_bytes()}); }
  void set_content(uint64_t offset_bytes, absl::string_view bytes);
  uint64_t flush_count() const { return flush_count_.load(); }
  // How many read() and write() calls reached it.
  uint64_t transfer_count() const { return transfer_count_.load(); }

 private:
  static constexpr size_t kChunkBytes = size_t{64} << 10;
  static constexpr size_t kShards = 64;

  struct Chunk {
    alignas(64) std::array<uint8_t, kChunkBytes> bytes{};
  };
  struct Shard {
    mutable absl::Mutex mutex;
    absl::flat_hash_map<uint64_t, std::unique_ptr<Chunk>> chunks
        ABSL_GUARDED_BY(mutex);
  };

  absl::Status before_access(const Access& access) override;
  void sleep_if_data_transfer();

  // Chunks live as long as the driver.
  Chunk* find_chunk(uint64_t index) const;
  Chunk* make_chunk(uint64_t index);
  // Calls visit(chunk or null, offset in the chunk, ByteRange) for the part of
  // `range` in each chunk.
  template <typename Visitor>
  void for_each_part(ByteRange range, bool make, Visitor visit) const;
  void copy_out(uint64_t offset, uint8_t* to, uint64_t bytes) const;
  void copy_in(uint64_t offset, const uint8_t* from, uint64_t bytes);
  void zero(ByteRange range);
  bool in_bounds(uint64_t offset, uint64_t bytes) const;

  const Options options_;
  std::atomic<uint64_t> length_bytes_;
  std::atomic<uint64_t> flush_count_{0};
  std::atomic<uint64_t> transfer_count_{0};
  mutable std::array<Shard, kShards> shards_;
};

}  // namespace testing
}  // namespace spindle

#endif  // SPINDLE_TESTS_SUPPORT_MEMORY_DRIVER_H_

// A request in steady state allocates nothing: this test replaces operator new
// and counts.
#include <array>
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>

#include "tests/engine/device_fixture.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<uint64_t> allocations{0};

void* allocate(size_t bytes) {
  if (counting.load(std::memory_order_relaxed)) {
    allocations.fetch_add(1, std::memory_order_relaxed);
  }
  void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace spindle {
namespace {

// A driver that allocates nothing itself, unlike one that keeps records.
class SilentDriver final : public BlockDriver {
 public:
  absl::Status read(const IoVector& qiov, Sector) override {
    qiov.fill('s');
    return absl::OkStatus();
  }
  absl::Status write(const IoVector&, Sector) override {
    return absl::OkStatus();
  }
  absl::Status flush() override { return absl::OkStatus(); }
  uint64_t try_read(const IoVector& qiov, Sector) override {
    qiov.fill('s');
    return qiov.length_bytes();
  }
  absl::string_view format_name() const override { return "silent"; }
  uint64_t length_bytes() const override { return 1 << 20; }
  bool read_only() const override { return false; }
  Capabilities capabilities() const override { return {Capability::kTryRead}; }
};

class SteadyState : public ::testing::TestWithParam<bool> {
 protected:
  SteadyState() : executor_(testing::make_test_executor(2)) {
    device_ =
        *BlockDevice::create(std::make_shared<SilentDriver>(), executor_.get(),
                             {.run_in_place = GetParam()});
    for (size_t i = 0; i < segments_.size(); ++i) {
      segments_[i] = {memory_.data() + i * 512, 512};
    }
  }

  // Does `burst` until it is warm, and counts what it allocates afterwards.
  template <typename Burst>
  static uint64_t allocations_of(Burst burst) {
    for (int i = 0; i < 200; ++i) burst();
    allocations = 0;
    counting = true;
    for (int i = 0; i < 200; ++i) burst();
    counting = false;
    return allocations;
  }

  std::array<char, IoVector::kInlineSegments * 512> memory_;
  std::array<iovec, IoVector::kInlineSegments> segments_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<BlockDevice> device_;
};

TEST_P(SteadyState, ReadsThroughTheQueueAllocateNothing) {
  std::array<Completion, 8> out;
  const uint64_t count = allocations_of([&] {
    const IoVector qiov{absl::MakeConstSpan(segments_)};
    for (uint64_t i = 0; i < out.size(); ++i)
      device_->aio_readv(Sector(i), qiov, i);
    device_->completion_queue().wait(out.size(), absl::InfiniteDuration(),
                                     absl::MakeSpan(out));
  });
  EXPECT_EQ(count, 0u);
}

TEST_P(SteadyState, ReadsByCallbackAllocateNothing) {
  std::atomic<uint64_t> ran{0};
  const uint64_t count = allocations_of([&] {
    const IoVector qiov{absl::MakeConstSpan(segments_)};
    const uint64_t before = ran;
    for (uint64_t i = 0; i < 8; ++i) {
      device_->aio_readv(Sector(i), qiov,
                         [&ran](const absl::Status&) { ++ran; });
    }
    while (ran < before + 8) device_->reap();
    // A request is free for the next burst only after its callback.
    EXPECT_TRUE(device_->drain().ok());
  });
  EXPECT_EQ(count, 0u);
}

TEST_P(SteadyState, SynchronousReadsAllocateNothing) {
  const uint64_t count = allocations_of([&] {
    const IoVector qiov{absl::MakeConstSpan(segments_)};
    EXPECT_TRUE(device_->read(qiov, Sector(3)).ok());
  });
  EXPECT_EQ(count, 0u);
}

INSTANTIATE_TEST_SUITE_P(PoolAndInPlace, SteadyState, ::testing::Bool());

}  // namespace
}  // namespace spindle

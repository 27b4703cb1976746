// A read that hits allocates no memory in steady state: through aio_readv, on
// raw and on qcow2, with up to 16 segments, in place and on the pool.
//
// The operators new of this program count.

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "absl/time/time.h"
#include "engine/block_device.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "formats/builtin.h"
#include "gtest/gtest.h"
#include "tests/support/qemu_tools.h"
#include "threadpool/default_executor.h"

namespace {

std::atomic<uint64_t> g_allocations{0};

void* allocate(std::size_t bytes, std::size_t alignment) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = nullptr;
  if (bytes == 0) bytes = 1;
  if (alignment <= alignof(std::max_align_t)) {
    memory = std::malloc(bytes);
  } else if (::posix_memalign(&memory, alignment, bytes) != 0) {
    memory = nullptr;
  }
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes, 1); }
void* operator new[](std::size_t bytes) { return allocate(bytes, 1); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return allocate(bytes, 1);
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return allocate(bytes, 1);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, const std::nothrow_t&) noexcept {
  std::free(memory);
}

namespace spindle::testing {
namespace {

constexpr uint64_t kImageBytes = 4 << 20;
constexpr uint64_t kRequestBytes = 16384;
constexpr size_t kDepth = 8;

enum class Place { kInPlace, kPool };

class AllocCount
    : public ::testing::TestWithParam<std::tuple<std::string, Place, size_t>> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(qemu_create({.image = image_,
                             .size_bytes = kImageBytes,
                             .options = "",
                             .backing = {}})
                    .ok());
    ASSERT_TRUE(qemu_io(image_, {"write -P 90 0 4M"}).ok());
    executor_ =
        make_executor({.width = 4, .name = "alloc", .interleaving_seed = 1});
    const ImageOpener opener(builtin_drivers(), {});
    OpenOptions open_options;
    open_options.read_only = true;
    auto driver = opener.open(image_.path, image_.format, open_options);
    ASSERT_TRUE(driver.ok()) << driver.status();
    BlockDeviceOptions options;
    options.run_in_place = std::get<1>(GetParam()) == Place::kInPlace;
    auto device =
        BlockDevice::create(*std::move(driver), executor_.get(), options);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    make_buffers(std::get<2>(GetParam()));
  }

  void TearDown() override {
    if (device_ != nullptr) {
      EXPECT_TRUE(device_->close().ok());
    }
    ::unlink(image_.path.c_str());
  }

  // Each request's memory in `segments` pieces, with gaps between them.
  void make_buffers(size_t segments) {
    const size_t piece = kRequestBytes / segments;
    memory_.resize(kDepth * segments * (piece + 64));
    for (size_t slot = 0; slot < kDepth; ++slot) {
      std::vector<iovec> list;
      for (size_t i = 0; i < segments; ++i) {
        list.push_back(
            {memory_.data() + (slot * segments + i) * (piece + 64), piece});
      }
      buffers_.emplace_back(list);
    }
  }

  // `count` reads at a depth of kDepth, from the same memory; true if all went
  // well.
  bool read(uint64_t count) {
    uint64_t submitted = 0, done = 0;
    bool good = true;
    std::array<Completion, kDepth> completions;
    const auto submit = [&](size_t slot) {
      const uint64_t offset = submitted * 5 * kRequestBytes % kImageBytes;
      (void)device_->aio_readv(Sector::from_byte_offset(offset), buffers_[slot],
                               slot);
      ++submitted;
    };
    for (size_t slot = 0; slot < kDepth; ++slot) submit(slot);
    while (done < submitted) {
      const size_t reaped = device_->completion_queue().wait(
          1, absl::InfiniteDuration(), absl::MakeSpan(completions));
      done += reaped;
      for (size_t i = 0; i < reaped; ++i) {
        good = good && completions[i].status.ok();
        if (submitted < count) submit(completions[i].user_data);
      }
    }
    return good;
  }

  const ImageFile image_{temporary_path("alloc"), std::get<0>(GetParam())};
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<BlockDevice> device_;
  std::vector<uint8_t> memory_;
  std::vector<IoVector> buffers_;
};

TEST_P(AllocCount, ReadHitAllocatesNothing) {
  // Caches and free lists fill; every worker has had its turn.
  ASSERT_TRUE(read(5000));
  const uint64_t before = g_allocations;
  ASSERT_TRUE(read(20000));
  EXPECT_EQ(g_allocations - before, 0u);
  EXPECT_EQ(memory_[0], 90);
}

TEST(AllocCountItself, SeesAnAllocation) {
  const uint64_t before = g_allocations;
  auto something = std::make_unique<std::array<char, 100>>();
  EXPECT_GT(g_allocations, before);
  EXPECT_NE(something, nullptr);
}

INSTANTIATE_TEST_SUITE_P(All, AllocCount,
                         ::testing::Combine(::testing::Values("raw", "qcow2"),
                                            ::testing::Values(Place::kInPlace,
                                                              Place::kPool),
                                            ::testing::Values(1, 2, 16)),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) == Place::kInPlace
                                       ? "_in_place_"
                                       : "_pool_") +
                                  std::to_string(std::get<2>(info.param));
                         });

}  // namespace
}  // namespace spindle::testing

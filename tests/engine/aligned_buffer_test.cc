#include "engine/aligned_buffer.h"

#include <cstdint>
#include <utility>

#include "gtest/gtest.h"

namespace spindle {
namespace {

bool is_at(const void* address, size_t alignment) {
  return reinterpret_cast<uintptr_t>(address) % alignment == 0;
}

TEST(AlignedBuffer, IsAligned) {
  for (size_t alignment : {512, 4096, 65536}) {
    AlignedBuffer buffer(100, alignment);
    EXPECT_TRUE(is_at(buffer.data(), alignment));
    EXPECT_EQ(buffer.size(), 100u);
  }
}

TEST(AlignedBuffer, MovesItsMemory) {
  AlignedBuffer first(100, 512);
  uint8_t* const memory = first.data();
  AlignedBuffer second(std::move(first));
  EXPECT_EQ(second.data(), memory);
  AlignedBuffer third;
  third = std::move(second);
  EXPECT_EQ(third.data(), memory);
}

TEST(AlignedBufferPool, GivesTheSameMemoryAgain) {
  AlignedBufferPool pool(4096, 2, 1 << 20);
  uint8_t* memory = nullptr;
  {
    AlignedBufferPool::Lease lease = pool.take(8192);
    memory = lease.data();
    EXPECT_TRUE(is_at(memory, 4096));
  }
  AlignedBufferPool::Lease smaller = pool.take(4096);
  EXPECT_EQ(smaller.data(), memory);
  AlignedBufferPool::Lease another = pool.take(4096);
  EXPECT_NE(another.data(), memory);
}

TEST(AlignedBufferPool, NeverGivesLessThanAskedFor) {
  AlignedBufferPool pool(512, 2, 1 << 20);
  {
    AlignedBufferPool::Lease lease = pool.take(512);
  }
  AlignedBufferPool::Lease larger = pool.take(1024);
  EXPECT_GE(larger.size(), 1024u);
}

TEST(AlignedBufferPool, KeepsTheLargerOnes) {
  AlignedBufferPool pool(512, 1, 4096);
  {
    AlignedBufferPool::Lease lease = pool.take(512);
  }
  uint8_t* memory = nullptr;
  {
    AlignedBufferPool::Lease lease = pool.take(4096);
    memory = lease.data();
  }
  EXPECT_EQ(pool.take(4096).data(), memory);
  {
    AlignedBufferPool::Lease too_large = pool.take(8192);
  }
  EXPECT_EQ(pool.take(4096).size(), 4096u);
}

}  // namespace
}  // namespace spindle

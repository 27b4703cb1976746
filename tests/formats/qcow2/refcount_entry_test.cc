#include "formats/qcow2/refcount_entry.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

constexpr uint32_t kMaxOrder = 6;
constexpr size_t kBlockBytes = 512;

uint64_t max_value(uint32_t order) {
  return order == 6 ? ~uint64_t{0} : (uint64_t{1} << (1u << order)) - 1;
}

// The format's rule, bit by bit: entry bit `bit` (0 is the least significant)
// of entry `index` is this bit of the block.
struct BitPlace {
  size_t byte;
  uint32_t bit;
};
BitPlace place_of(uint32_t order, uint64_t index, uint32_t bit) {
  const uint32_t width = 1u << order;
  if (width < 8) {
    const uint64_t first = index * width + bit;
    return {static_cast<size_t>(first / 8), static_cast<uint32_t>(first % 8)};
  }
  // Big-endian: the least significant byte comes last.
  const size_t bytes = width / 8;
  return {index * bytes + (bytes - 1 - bit / 8), bit % 8};
}

TEST(RefcountEntry, LoadsEveryWidthAsABitModelDoes) {
  std::mt19937_64 random(testing::test_seed());
  std::vector<uint8_t> block(kBlockBytes);
  for (uint8_t& byte : block) byte = static_cast<uint8_t>(random());
  for (uint32_t order = 0; order <= kMaxOrder; ++order) {
    for (uint64_t i = 0; i < kBlockBytes * 8 >> order; ++i) {
      uint64_t expected = 0;
      for (uint32_t bit = 0; bit < 1u << order; ++bit) {
        const BitPlace at = place_of(order, i, bit);
        expected |= uint64_t{(block[at.byte] >> at.bit) & 1u} << bit;
      }
      ASSERT_EQ(load_refcount(block.data(), order, i), expected)
          << "order " << order << ", entry " << i;
    }
  }
}

TEST(RefcountEntry, StoresEveryWidthAndTouchesNothingElse) {
  std::mt19937_64 random(testing::test_seed());
  for (uint32_t order = 0; order <= kMaxOrder; ++order) {
    std::vector<uint8_t> block(kBlockBytes);
    for (uint8_t& byte : block) byte = static_cast<uint8_t>(random());
    std::vector<uint8_t> model = block;
    for (int step = 0; step < 1000; ++step) {
      const uint64_t index = random() % (kBlockBytes * 8 >> order);
      const uint64_t value = random() & max_value(order);
      store_refcount(block.data(), order, index, value);
      for (uint32_t bit = 0; bit < 1u << order; ++bit) {
        const BitPlace at = place_of(order, index, bit);
        const uint32_t mask = 1u << at.bit;
        model[at.byte] = static_cast<uint8_t>(((value >> bit) & 1) != 0
                                                  ? model[at.byte] | mask
                                                  : model[at.byte] & ~mask);
      }
      ASSERT_EQ(block, model) << "order " << order << ", entry " << index;
    }
  }
}

TEST(RefcountEntry, SaysWhichBytesHoldAnEntry) {
  for (uint32_t order = 0; order <= kMaxOrder; ++order) {
    for (uint64_t i = 0; i < 64; ++i) {
      const RefcountBytes bytes = refcount_bytes_of(order, i);
      size_t begin = kBlockBytes;
      size_t end = 0;
      for (uint32_t bit = 0; bit < 1u << order; ++bit) {
        const size_t byte = place_of(order, i, bit).byte;
        begin = std::min(begin, byte);
        end = std::max(end, byte + 1);
      }
      EXPECT_EQ(bytes.begin, begin) << order << " " << i;
      EXPECT_EQ(bytes.end, end) << order << " " << i;
    }
  }
}

}  // namespace
}  // namespace spindle::qcow2

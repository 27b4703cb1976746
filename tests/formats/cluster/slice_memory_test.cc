#include "formats/cluster/slice_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace spindle {
namespace {

class SliceMemoryTest : public ::testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(SliceBytes, SliceMemoryTest,
                         ::testing::Values(512, 4096, 65536, 2 << 20));

TEST_P(SliceMemoryTest, PiecesAreAlignedAndApart) {
  SliceMemory memory(GetParam());
  std::vector<SliceMemory::Piece> pieces;
  for (int i = 0; i < 40; ++i) {
    pieces.push_back(memory.take());
    std::memset(pieces.back().get(), i, GetParam());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(pieces.back().get()) %
                  std::min<size_t>(GetParam(), 4096),
              0u);
  }
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(pieces[static_cast<size_t>(i)][0], i);
    EXPECT_EQ(pieces[static_cast<size_t>(i)][GetParam() - 1], i);
  }
}

TEST_P(SliceMemoryTest, WhatIsGivenBackIsUsedAgain) {
  SliceMemory memory(GetParam());
  std::set<const uint8_t*> places;
  for (int i = 0; i < 1000; ++i) {
    const SliceMemory::Piece a = memory.take();
    const SliceMemory::Piece b = memory.take();
    places.insert({a.get(), b.get()});
  }
  EXPECT_LE(places.size(), 2u);
}

TEST(SliceMemory, ThreadsShareIt) {
  SliceMemory memory(512);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&memory, t] {
      for (int i = 0; i < 2000; ++i) {
        std::vector<SliceMemory::Piece> pieces;
        for (int n = 0; n < 7; ++n) {
          pieces.push_back(memory.take());
          std::memset(pieces.back().get(), t, 512);
        }
        for (const SliceMemory::Piece& piece : pieces) {
          EXPECT_EQ(piece[0], t);
          EXPECT_EQ(piece[511], t);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace spindle

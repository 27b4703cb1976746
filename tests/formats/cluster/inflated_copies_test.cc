#include "formats/cluster/inflated_copies.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "formats/cluster/address.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

InflatedCopies::Copy copy_of(uint8_t value) {
  return std::make_shared<const std::vector<uint8_t>>(16, value);
}

TEST(InflatedCopies, KeepsTheMostRecentlyUsed) {
  InflatedCopies copies(2);
  copies.insert(0x1000, {1, 1}, copy_of(1));
  copies.insert(0x2000, {2, 1}, copy_of(2));
  ASSERT_NE(copies.find(0x1000), nullptr);
  copies.insert(0x3000, {3, 1}, copy_of(3));
  EXPECT_EQ(copies.find(0x2000), nullptr);
  ASSERT_NE(copies.find(0x1000), nullptr);
  EXPECT_EQ(copies.find(0x1000)->front(), 1);
  EXPECT_EQ(copies.find(0x3000)->front(), 3);
}

TEST(InflatedCopies, ASecondInsertKeepsTheFirst) {
  InflatedCopies copies(2);
  copies.insert(0x1000, {1, 1}, copy_of(1));
  copies.insert(0x1000, {1, 1}, copy_of(9));
  EXPECT_EQ(copies.find(0x1000)->front(), 1);
}

TEST(InflatedCopies, DiscardForgetsWhatLiesInTheClusters) {
  InflatedCopies copies(4);
  copies.insert(0x1e00, {1, 2}, copy_of(1));
  copies.insert(0x1000, {1, 1}, copy_of(2));
  copies.insert(0x3000, {3, 1}, copy_of(3));
  const InflatedCopies::Copy held = copies.find(0x1e00);
  copies.discard({2, 1});
  EXPECT_EQ(copies.find(0x1e00), nullptr);
  EXPECT_NE(copies.find(0x1000), nullptr);
  EXPECT_NE(copies.find(0x3000), nullptr);
  // Who had it keeps it.
  EXPECT_EQ(held->front(), 1);
}

}  // namespace
}  // namespace spindle

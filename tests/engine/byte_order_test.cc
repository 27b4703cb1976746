#include "engine/byte_order.h"

#include <cstdint>
#include <cstring>

#include "gtest/gtest.h"

namespace spindle {
namespace {

// From address 1 on, so that nothing relies on alignment.
constexpr uint8_t kBytes[] = {0xff, 1, 2, 3, 4, 5, 6, 7, 8};

TEST(ByteOrder, LoadsBothOrders) {
  EXPECT_EQ(load_big16(kBytes + 1), 0x0102u);
  EXPECT_EQ(load_big32(kBytes + 1), 0x01020304u);
  EXPECT_EQ(load_big64(kBytes + 1), 0x0102030405060708u);
  EXPECT_EQ(load_little16(kBytes + 1), 0x0201u);
  EXPECT_EQ(load_little32(kBytes + 1), 0x04030201u);
  EXPECT_EQ(load_little64(kBytes + 1), 0x0807060504030201u);
}

TEST(ByteOrder, StoresBothOrders) {
  uint8_t got[9] = {0xff};
  store_big64(got + 1, 0x0102030405060708u);
  EXPECT_EQ(std::memcmp(got, kBytes, 9), 0);
  store_big32(got + 1, 0x01020304u);
  store_big16(got + 5, 0x0506u);
  EXPECT_EQ(std::memcmp(got, kBytes, 7), 0);
  store_little64(got + 1, 0x0807060504030201u);
  EXPECT_EQ(std::memcmp(got, kBytes, 9), 0);
  store_little32(got + 1, 0x04030201u);
  store_little16(got + 5, 0x0605u);
  EXPECT_EQ(std::memcmp(got, kBytes, 9), 0);
}

}  // namespace
}  // namespace spindle

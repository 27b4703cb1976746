#include "formats/crypto/encrypted_transfer.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/byte_channel.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/crypto/legacy_aes.h"
#include "formats/crypto/sector_cipher.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"

namespace spindle::crypto {
namespace {

using spindle::testing::MemoryDriver;

constexpr uint8_t kPassphrase[] = {'o', 'p', 'e', 'n'};

std::unique_ptr<SectorCipher> make_cipher(absl::Span<const uint8_t> key) {
  auto cipher = legacy_aes_cipher(key);
  EXPECT_TRUE(cipher.ok()) << cipher.status();
  return cipher.ok() ? *std::move(cipher) : nullptr;
}

std::vector<uint8_t> pattern(size_t bytes) {
  std::vector<uint8_t> result(bytes);
  for (size_t i = 0; i < bytes; ++i)
    result[i] = static_cast<uint8_t>(i * 7 + i / 512);
  return result;
}

class EncryptedTransferTest : public ::testing::Test {
 protected:
  EncryptedTransferTest()
      : memory_(std::make_shared<MemoryDriver>()),
        file_(memory_),
        transfer_(make_cipher(kPassphrase), 512) {}

  absl::Status write(std::vector<uint8_t>* bytes,
                     EncryptedTransfer::Place place) {
    return transfer_.write(&file_, Purpose::kWriteAio,
                           IoVector(bytes->data(), bytes->size()), place);
  }
  std::vector<uint8_t> read(size_t bytes, EncryptedTransfer::Place place) {
    std::vector<uint8_t> result(bytes);
    EXPECT_TRUE(transfer_
                    .read(&file_, Purpose::kReadAio,
                          IoVector(result.data(), result.size()), place)
                    .ok());
    return result;
  }

  std::shared_ptr<MemoryDriver> memory_;
  ByteChannel file_;
  EncryptedTransfer transfer_;
};

// Longer than a piece, and than two.
TEST_F(EncryptedTransferTest, WritesWhatItReadsAndLeavesTheMemoryAlone) {
  for (const size_t bytes :
       {size_t{512}, size_t{256} << 10, (size_t{600} << 10) + size_t{512}}) {
    std::vector<uint8_t> data = pattern(bytes);
    const std::vector<uint8_t> before = data;
    ASSERT_TRUE(write(&data, {4096, 17}).ok());
    EXPECT_EQ(data, before);
    const std::string stored = memory_->content();
    EXPECT_FALSE(std::equal(
        data.begin(), data.end(), stored.begin() + 4096,
        [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); }));
    EXPECT_EQ(read(bytes, {4096, 17}), before);
    EXPECT_NE(read(bytes, {4096, 18}), before);
  }
}

// Each sector stands for itself, in whatever pieces it came.
TEST_F(EncryptedTransferTest, PiecesOfARequestAreOneRequest) {
  std::vector<uint8_t> data = pattern(size_t{700} << 10);
  ASSERT_TRUE(write(&data, {0, 5}).ok());
  const size_t at = size_t{300} << 10;
  const std::vector<uint8_t> part = read(2048, {at, 5 + at / 512});
  EXPECT_TRUE(std::equal(part.begin(), part.end(), data.begin() + at));
}

TEST_F(EncryptedTransferTest, AnEndWithinASectorFillsTheSector) {
  std::vector<uint8_t> data = pattern(1300);
  ASSERT_TRUE(write(&data, {512, 1}).ok());
  EXPECT_EQ(memory_->length_bytes(), 512U + 3 * 512);
  EXPECT_EQ(read(1300, {512, 1}), data);
  std::vector<uint8_t> whole = data;
  whole.resize(1536);
  EXPECT_EQ(read(1536, {512, 1}), whole);
  data.resize(100);
  ASSERT_TRUE(write(&data, {512, 1}).ok());
  EXPECT_EQ(read(100, {512, 1}), data);
}

TEST_F(EncryptedTransferTest, AnotherKeyReadsSomethingElse) {
  std::vector<uint8_t> data = pattern(4096);
  ASSERT_TRUE(write(&data, {0, 0}).ok());
  EncryptedTransfer other(make_cipher({}), 512);
  std::vector<uint8_t> got(4096);
  ASSERT_TRUE(other
                  .read(&file_, Purpose::kReadAio,
                        IoVector(got.data(), got.size()), {0, 0})
                  .ok());
  EXPECT_NE(got, data);
}

// Whoever meets a write reads what was there before or after, of each sector.
TEST_F(EncryptedTransferTest, OverlappingRequestsDoNotTearSectors) {
  constexpr size_t kBytes = 16 * 512;
  const auto write_all = [this](uint8_t value) {
    std::vector<uint8_t> data(kBytes, value);
    EXPECT_TRUE(write(&data, {0, 0}).ok());
  };
  write_all(1);
  std::atomic<bool> stop = false;
  std::vector<std::thread> writers;
  for (const uint8_t first : {uint8_t{1}, uint8_t{2}}) {
    writers.emplace_back([&, first] {
      for (int value = first; !stop; value = value % 200 + 2)
        write_all(static_cast<uint8_t>(value));
    });
  }
  for (int i = 0; i < 3000; ++i) {
    const std::vector<uint8_t> got = read(kBytes, {0, 0});
    for (size_t at = 0; at < kBytes; at += 512) {
      const auto sector = got.begin() + static_cast<ptrdiff_t>(at);
      EXPECT_TRUE(std::all_of(sector, sector + 512,
                              [&](uint8_t byte) { return byte == *sector; }))
          << "read " << i << ", sector " << at / 512;
    }
  }
  stop = true;
  for (std::thread& writer : writers) writer.join();
}

TEST_F(EncryptedTransferTest, TriesShortRequestsOnly) {
  std::vector<uint8_t> data = pattern(size_t{64} << 10);
  ASSERT_TRUE(write(&data, {0, 0}).ok());
  std::vector<uint8_t> got(data.size());
  EXPECT_EQ(transfer_.try_read(&file_, Purpose::kReadAio,
                               IoVector(got.data(), got.size()), {0, 0}),
            0U);
  EXPECT_EQ(transfer_.try_read(&file_, Purpose::kReadAio,
                               IoVector(got.data(), 700), {0, 0}),
            0U);
}

}  // namespace
}  // namespace spindle::crypto

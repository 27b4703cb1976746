// Encrypted images in memory: what is stored, who may read it, and all that an
// image does besides.  Beside QEMU: encryption_judges_test.cc and
// tests/differential.
#include "formats/qcow2/encryption.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/block_driver.h"
#include "engine/byte_order.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_driver.h"
#include "formats/qcow2/qcow2_format.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/memory_driver.h"
#include "threadpool/inline_executor.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryDriver;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::read_bytes;
using testing::test_secrets;
using testing::write_fill;

constexpr uint64_t kCluster = 65536;

MemoryImageOptions encrypted_as(const std::string& encryption) {
  MemoryImageOptions options;
  options.encryption = encryption;
  return options;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_bytes(
    const std::shared_ptr<MemoryDriver>& file, OptionMap driver_options,
    bool read_only = false) {
  OpenOptions options;
  options.read_only = read_only;
  options.driver_options = std::move(driver_options);
  OpenContext context;
  context.secrets = test_secrets();
  return open_qcow2(file, options, context);
}

absl::Status amend(BlockDriver& driver, OptionMap changes, bool force = false) {
  AmendOptions options;
  options.changes = std::move(changes);
  options.force = force;
  return driver.amend(options);
}

// Of both kinds.
class Encrypted : public ::testing::TestWithParam<const char*> {
 protected:
  static MemoryImageOptions options() { return encrypted_as(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Kinds, Encrypted, ::testing::Values("aes", "luks"),
                         [](const auto& info) { return info.param; });

TEST_P(Encrypted, StoresSomethingElseAndLeavesTheMemoryAlone) {
  MemoryImage image(options());
  std::string data(3 * kCluster + 512, 'x');
  const std::string before = data;
  // In segments that end within sectors.
  const IoVector pieces({iovec{data.data(), 1000},
                         iovec{data.data() + 1000, data.size() - 1000}});
  ASSERT_TRUE(image.driver().write(pieces, Sector(3)).ok());
  EXPECT_EQ(data, before);
  EXPECT_TRUE(image.reads_as({3 * 512, data.size()}, 'x'));
  EXPECT_TRUE(image.reads_as({0, 3 * 512}, 0));
  // In place, too.
  ASSERT_TRUE(image.write({kCluster, 4096}, 'y').ok());
  EXPECT_TRUE(image.reads_as({kCluster, 4096}, 'y'));
  ASSERT_TRUE(image.flush().ok());
  const std::string stored = image.memory().content();
  EXPECT_FALSE(absl::StrContains(stored, std::string(16, 'x')));
  EXPECT_FALSE(absl::StrContains(stored, std::string(16, 'y')));
  // A cluster that was padded: its zeroes are stored as something else.
  EXPECT_TRUE(image.close_and_check().ok());
}

// What the generic layer reads besides, to have whole sectors, is not in the
// way of what it decrypts to.
TEST_P(Encrypted, ReadsAndWritesAnyBytes) {
  MemoryImage image(options());
  InlineExecutor executor;
  const auto device = BlockDevice::create(
      std::shared_ptr<BlockDriver>(&image.driver(), [](BlockDriver*) {}),
      &executor);
  ASSERT_TRUE(device.ok()) << device.status();
  std::string model(2 * kCluster, '\0');
  for (size_t at = 0; at < model.size(); ++at)
    model[at] = static_cast<char>(at * 7 + at / 512);
  ASSERT_TRUE((*device)->pwrite(IoVector(model.data(), model.size()), 0).ok());
  std::string piece(5000, 'p');
  for (const size_t at : {1000, 65000, 100001}) {
    ASSERT_TRUE(
        (*device)->pwrite(IoVector(piece.data(), piece.size()), at).ok());
    model.replace(at, piece.size(), piece);
  }
  for (size_t at = 1; at + 3000 < model.size(); at += 1777) {
    const size_t bytes = at % 3000 + 1;
    std::string back(bytes, '\0');
    ASSERT_TRUE((*device)->pread(IoVector(back.data(), bytes), at).ok());
    ASSERT_TRUE(back == model.substr(at, bytes)) << at;
  }
}

TEST_P(Encrypted, CopyOnWriteReadsThroughAndEncrypts) {
  MemoryImageOptions options = this->options();
  options.backing = std::string(options.size_bytes, 'b');
  MemoryImage image(options);
  ASSERT_TRUE(image.write({kCluster + 512, 512}, 1).ok());
  EXPECT_TRUE(image.reads_as({kCluster, 512}, 'b'));
  EXPECT_TRUE(image.reads_as({kCluster + 512, 512}, 1));
  EXPECT_TRUE(image.reads_as({kCluster + 1024, kCluster}, 'b'));
  ASSERT_TRUE(image.flush().ok());
  EXPECT_FALSE(
      absl::StrContains(image.memory().content(), std::string(16, 'b')));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST_P(Encrypted, ZeroesDiscardsAndRewrites) {
  for (const char* extended : {"off", "on"}) {
    MemoryImageOptions options = this->options();
    options.create["extended_l2"] = extended;
    MemoryImage image(options);
    ASSERT_TRUE(image.write({0, 4 * kCluster}, 1).ok());
    ASSERT_TRUE(image.driver()
                    .write_zeroes({kCluster, kCluster}, WriteZeroesFlags())
                    .ok());
    ASSERT_TRUE(image.driver()
                    .write_zeroes({2 * kCluster, kCluster}, {.may_unmap = true})
                    .ok());
    ASSERT_TRUE(image.discard({3 * kCluster, kCluster}).ok());
    EXPECT_TRUE(image.reads_as({kCluster, 3 * kCluster}, 0));
    // Into what kept its cluster, and into what did not.
    for (uint64_t i = 1; i < 4; ++i) {
      ASSERT_TRUE(image.write({i * kCluster + 4096, 2048}, 7).ok());
      EXPECT_TRUE(image.reads_as({i * kCluster, 4096}, 0));
      EXPECT_TRUE(image.reads_as({i * kCluster + 4096, 2048}, 7));
      EXPECT_TRUE(image.reads_as({i * kCluster + 6144, kCluster - 6144}, 0));
    }
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

TEST_P(Encrypted, ReusedClustersArePaddedWithZeroes) {
  MemoryImage image(options());
  for (uint64_t round = 0; round < 3; ++round) {
    ASSERT_TRUE(image.write({0, 8 * kCluster}, 9).ok());
    ASSERT_TRUE(image.discard({0, 8 * kCluster}).ok());
    ASSERT_TRUE(image.flush().ok());
    ASSERT_TRUE(image.write({2 * kCluster + 512, 512}, 3).ok());
    EXPECT_TRUE(image.reads_as({2 * kCluster + 1024, kCluster - 1024}, 0));
    EXPECT_TRUE(image.reads_as({2 * kCluster, 512}, 0));
  }
}

TEST_P(Encrypted, FirstWritesToOneClusterSideBySide) {
  MemoryImage image(options());
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kPiece = 4096;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&image, t] {
      for (uint64_t at = t * kPiece; at < image.driver().length_bytes();
           at += kThreads * kPiece) {
        EXPECT_TRUE(
            image.write({at, kPiece}, static_cast<uint8_t>(1 + at / kPiece))
                .ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t at = 0; at < image.driver().length_bytes(); at += kPiece) {
    ASSERT_TRUE(
        image.reads_as({at, kPiece}, static_cast<uint8_t>(1 + at / kPiece)));
  }
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST_P(Encrypted, SnapshotsKeepWhatTheyHold) {
  MemoryImage image(options());
  ASSERT_TRUE(image.write({0, 2 * kCluster}, 1).ok());
  SnapshotInfo wanted;
  wanted.name = "s";
  ASSERT_TRUE(image.driver().create_snapshot(wanted).ok());
  ASSERT_TRUE(image.write({512, kCluster}, 2).ok());
  EXPECT_TRUE(image.reads_as({0, 512}, 1));
  ASSERT_TRUE(image.driver().apply_snapshot("s").ok());
  EXPECT_TRUE(image.reads_as({0, 2 * kCluster}, 1));
  EXPECT_TRUE(image.close_and_check().ok());
}

// At any byte: the state's writer knows no sectors.
TEST_P(Encrypted, VmStateIsEncryptedToo) {
  MemoryImage image(options());
  std::string state(3 * kCluster + 777, 's');
  for (size_t at = 0; at < state.size(); at += 10007) {
    const size_t bytes = std::min<size_t>(10007, state.size() - at);
    ASSERT_TRUE(
        image.driver().write_vmstate(IoVector(&state[at], bytes), at).ok());
  }
  std::string back(state.size(), '\0');
  ASSERT_TRUE(
      image.driver().read_vmstate(IoVector(back.data(), back.size()), 0).ok());
  EXPECT_EQ(back, state);
  std::string part(1000, '\0');
  ASSERT_TRUE(image.driver()
                  .read_vmstate(IoVector(part.data(), part.size()), 333)
                  .ok());
  EXPECT_EQ(part, std::string(1000, 's'));
  SnapshotInfo wanted;
  wanted.name = "s";
  wanted.vm_state_bytes = state.size();
  ASSERT_TRUE(image.driver().create_snapshot(wanted).ok());
  EXPECT_FALSE(
      absl::StrContains(image.memory().content(), std::string(16, 's')));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST_P(Encrypted, VmStatePiecesOfOneSectorSideBySide) {
  MemoryImage image(options());
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&image, t] {
      for (uint64_t i = t; i < 200; i += 4) {
        std::string piece(100, static_cast<char>('a' + i % 26));
        EXPECT_TRUE(image.driver()
                        .write_vmstate(IoVector(piece.data(), 100), i * 100)
                        .ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t i = 0; i < 200; ++i) {
    std::string piece(100, '\0');
    ASSERT_TRUE(
        image.driver().read_vmstate(IoVector(piece.data(), 100), i * 100).ok());
    ASSERT_EQ(piece, std::string(100, static_cast<char>('a' + i % 26))) << i;
  }
}

TEST_P(Encrypted, GrowsWithZeroesAndShrinks) {
  MemoryImageOptions options = this->options();
  options.size_bytes = 3 * kCluster + 1024;
  MemoryImage image(options);
  ASSERT_TRUE(image.write({0, options.size_bytes}, 5).ok());
  ASSERT_TRUE(
      image.driver().set_length(6 * kCluster, SetLengthMode::kExact).ok());
  EXPECT_TRUE(image.reads_as({0, options.size_bytes}, 5));
  EXPECT_TRUE(image.reads_as(
      {options.size_bytes, 6 * kCluster - options.size_bytes}, 0));
  ASSERT_TRUE(
      image.driver().set_length(kCluster + 512, SetLengthMode::kExact).ok());
  ASSERT_TRUE(
      image.driver().set_length(4 * kCluster, SetLengthMode::kExact).ok());
  EXPECT_TRUE(image.reads_as({0, kCluster + 512}, 5));
  EXPECT_TRUE(image.reads_as({kCluster + 512, 3 * kCluster - 512}, 0));
  EXPECT_TRUE(image.close_and_check().ok());
}

// Unlike in QEMU, also with preallocation.
TEST_P(Encrypted, GrowsWithZeroesThatArePreallocated) {
  for (const char* create :
       {"compat=0.10", "compat=1.1", "extended_l2=on", "refcount_bits=1"}) {
    for (const Preallocation mode :
         {Preallocation::kMetadata, Preallocation::kFalloc,
          Preallocation::kFull}) {
      SCOPED_TRACE(create);
      MemoryImageOptions options = this->options();
      const std::string text = create;
      options.create[text.substr(0, text.find('='))] =
          text.substr(text.find('=') + 1);
      // Clusters that were in use before.
      MemoryImage image(options);
      ASSERT_TRUE(image.write({0, options.size_bytes}, 5).ok());
      ASSERT_TRUE(
          image.driver().set_length(kCluster, SetLengthMode::kExact).ok());
      ASSERT_TRUE(image.driver().resize(8 * kCluster, mode).ok());
      EXPECT_TRUE(image.reads_as({0, kCluster}, 5));
      EXPECT_TRUE(image.reads_as({kCluster, 7 * kCluster}, 0));
      ASSERT_TRUE(image.write({3 * kCluster + 512, 512}, 6).ok());
      EXPECT_TRUE(image.reads_as({3 * kCluster, 512}, 0));
      EXPECT_TRUE(image.reads_as({3 * kCluster + 512, 512}, 6));
      EXPECT_TRUE(image.reads_as({3 * kCluster + 1024, kCluster}, 0));
      EXPECT_TRUE(image.close_and_check().ok());
    }
  }
}

// An image that says it ends within a sector, which no tool makes.
TEST_P(Encrypted, EndsWithinASector) {
  MemoryImage image(options());
  ASSERT_TRUE(image.close().ok());
  std::string bytes = image.memory().content();
  const uint64_t length = 2 * kCluster + 700;
  store_big64(&bytes[kSizeOffset], length);
  MemoryImageOptions options = this->options();
  options.bytes = bytes;
  MemoryImage odd(options);
  ASSERT_EQ(odd.driver().length_bytes(), length);
  ASSERT_TRUE(odd.write({2 * kCluster, 1024}, 3).ok());
  const auto tail = read_bytes(odd.driver(), {2 * kCluster, 1024});
  ASSERT_TRUE(tail.ok());
  EXPECT_EQ(*tail, std::string(700, 3) + std::string(324, '\0'));
  ASSERT_TRUE(
      odd.driver().set_length(4 * kCluster, SetLengthMode::kExact).ok());
  EXPECT_TRUE(odd.reads_as({2 * kCluster, 512}, 3));
  const auto grown = read_bytes(odd.driver(), {2 * kCluster, 1024});
  ASSERT_TRUE(grown.ok());
  EXPECT_EQ(*grown, *tail);
}

// Zero clusters become clusters of version 2, with zeroes that are encrypted.
TEST_P(Encrypted, DowngradesWithItsZeroes) {
  MemoryImageOptions options = this->options();
  options.backing = std::string(options.size_bytes, 'b');
  MemoryImage image(options);
  ASSERT_TRUE(image.write({0, 2 * kCluster}, 1).ok());
  ASSERT_TRUE(
      image.driver().write_zeroes({0, kCluster}, WriteZeroesFlags()).ok());
  ASSERT_TRUE(image.driver()
                  .write_zeroes({4 * kCluster, kCluster}, {.may_unmap = true})
                  .ok());
  ASSERT_TRUE(amend(image.driver(), {{"compat", "0.10"}}).ok());
  const auto check = [&] {
    EXPECT_TRUE(image.reads_as({0, kCluster}, 0));
    EXPECT_TRUE(image.reads_as({kCluster, kCluster}, 1));
    EXPECT_TRUE(image.reads_as({2 * kCluster, kCluster}, 'b'));
    EXPECT_TRUE(image.reads_as({4 * kCluster, kCluster}, 0));
  };
  check();
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open().ok());
  check();
  ASSERT_TRUE(amend(image.driver(), {{"compat", "1.1"}}).ok());
  ASSERT_TRUE(amend(image.driver(), {{"refcount_bits", "64"}}).ok());
  check();
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST_P(Encrypted, RefusesCompressedClusters) {
  MemoryImage image(options());
  EXPECT_FALSE(image.driver().capabilities().has(Capability::kWriteCompressed));
  std::string data(kCluster, 'x');
  const absl::Status status = image.driver().write_compressed(
      IoVector(data.data(), data.size()), Sector(0));
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_TRUE(image.reads_as({0, kCluster}, 0));
}

TEST_P(Encrypted, SaysWhereNothingOfItLies) {
  MemoryImage image(options());
  ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
  const auto status =
      image.driver().block_status({0, kCluster}, BlockStatusScope::kThisLayer);
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->data);
  EXPECT_FALSE(status->zero);
  EXPECT_EQ(status->host_offset, std::nullopt);
  const ImageInfo info = image.driver().info();
  EXPECT_TRUE(info.encrypted);
}

// As in QEMU: such clusters count as data, and are noise.
TEST_P(Encrypted, PreallocatedClustersAreNoise) {
  CreateOptions create;
  create.size_bytes = uint64_t{1} << 20;
  create.secrets = test_secrets();
  create.options = {{"encrypt.format", GetParam()},
                    {"encrypt.key-secret", "secret0"}};
  EXPECT_TRUE(qcow2_format()->new_images_read_as_zeroes(create));
  create.options["preallocation"] = "metadata";
  EXPECT_FALSE(qcow2_format()->new_images_read_as_zeroes(create));
  create.options["extended_l2"] = "on";
  EXPECT_TRUE(qcow2_format()->new_images_read_as_zeroes(create));
  MemoryImageOptions options = this->options();
  options.create["preallocation"] = "metadata";
  MemoryImage image(options);
  const auto status =
      image.driver().block_status({0, kCluster}, BlockStatusScope::kThisLayer);
  ASSERT_TRUE(status.ok());
  EXPECT_FALSE(status->zero);
  EXPECT_FALSE(image.reads_as({0, kCluster}, 0));
}

TEST_P(Encrypted, GoesOnAfterItWasInactive) {
  MemoryImage image(options());
  ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
  ASSERT_TRUE(image.driver().inactivate().ok());
  ASSERT_TRUE(image.driver().activate().ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 1));
}

TEST_P(Encrypted, WantsTheRightOptions) {
  MemoryImage image(options());
  ASSERT_TRUE(image.close().ok());
  const auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, image.memory().content());
  const std::string other = GetParam() == std::string("aes") ? "luks" : "aes";
  const struct {
    OptionMap options;
    const char* says;
  } kCases[] = {
      {{}, "'encrypt.key-secret' is required"},
      {{{"encrypt.format", GetParam()}}, "'encrypt.key-secret' is required"},
      {{{"encrypt.key-secret", "gone"}}, "'gone'"},
      {{{"encrypt.key-secret", "secret0"}, {"encrypt.format", other}},
       "Header reported"},
      {{{"encrypt.key-secret", "secret0"}, {"encrypt.iter-time", "5"}},
       "encrypt.iter-time"},
  };
  for (const auto& c : kCases) {
    const auto opened = open_bytes(file, c.options);
    ASSERT_FALSE(opened.ok()) << c.says;
    EXPECT_TRUE(absl::StrContains(opened.status().message(), c.says))
        << opened.status();
  }
  EXPECT_EQ(file->content(), image.memory().content());
  EXPECT_TRUE(open_bytes(file, {{"encrypt.key-secret", "secret0"},
                                {"encrypt.format", GetParam()}})
                  .ok());
}

// ---- Encrypted over encrypted
// ------------------------------------------------

TEST(EncryptedChain, EachHasItsOwnKey) {
  for (const char* below : {"aes", "luks"}) {
    MemoryImage base(encrypted_as(below));
    ASSERT_TRUE(base.write({0, 4 * kCluster}, 'b').ok());
    MemoryImage over(encrypted_as("luks"));
    ASSERT_TRUE(over.close().ok());
    // The overlay's name for it does not matter here.
    MemoryImageOptions options = encrypted_as("luks");
    options.backing = std::string(512, 'r');
    MemoryImage overlay(options);
    ASSERT_TRUE(overlay.close().ok());
    OpenContext context;
    context.secrets = test_secrets();
    context.open_child = [&](const ChildRequest&)
        -> absl::StatusOr<std::shared_ptr<BlockDriver>> {
      return std::shared_ptr<BlockDriver>(&base.driver(), [](BlockDriver*) {});
    };
    const auto file = std::make_shared<MemoryDriver>();
    file->set_content(0, overlay.memory().content());
    const auto opened = open_qcow2(file, overlay.open_options(), context);
    ASSERT_TRUE(opened.ok()) << opened.status();
    ASSERT_TRUE(write_fill(**opened, {kCluster + 1024, 512}, 7).ok());
    EXPECT_TRUE(testing::reads_as(**opened, {0, kCluster + 1024}, 'b'));
    EXPECT_TRUE(testing::reads_as(**opened, {kCluster + 1024, 512}, 7));
    EXPECT_TRUE(
        testing::reads_as(**opened, {kCluster + 1536, 2 * kCluster}, 'b'));
    EXPECT_TRUE(testing::reads_as(**opened, {4 * kCluster, kCluster}, 0));
    ASSERT_TRUE((*opened)->flush().ok());
    EXPECT_FALSE(absl::StrContains(file->content(), std::string(16, 'b')));
  }
}

// ---- LUKS: key slots, and what may be wrong with its header -----------------

TEST(EncryptedLuks, AWrongPasswordWritesNothing) {
  MemoryImage image(encrypted_as("luks"));
  ASSERT_TRUE(image.close().ok());
  std::string bytes = image.memory().content();
  // It would be repaired, if it could be opened.
  bytes[kIncompatibleFeaturesOffset + 7] |= kIncompatibleDirty;
  const auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, bytes);
  const auto opened = open_bytes(file, {{"encrypt.key-secret", "wrong"}});
  EXPECT_TRUE(absl::IsPermissionDenied(opened.status())) << opened.status();
  EXPECT_TRUE(absl::StrContains(opened.status().message(), "Invalid password"));
  EXPECT_EQ(file->content(), bytes);
}

TEST(EncryptedLuks, SlotsAreFilledAndErasedWhileGuestsWork) {
  MemoryImage image(encrypted_as("luks"));
  std::atomic<bool> stop = false;
  std::thread guest([&] {
    for (uint8_t i = 1; !stop; ++i)
      EXPECT_TRUE(image.write({0, 2 * kCluster}, i).ok());
  });
  ASSERT_TRUE(amend(image.driver(), {{"encrypt.state", "active"},
                                     {"encrypt.new-secret", "wrong"},
                                     {"encrypt.keyslot", "5"},
                                     {"encrypt.iter-time", "0"}})
                  .ok());
  ASSERT_TRUE(amend(image.driver(), {{"encrypt.state", "inactive"},
                                     {"encrypt.old-secret", "secret0"},
                                     {"lazy_refcounts", "on"}})
                  .ok());
  const absl::Status last =
      amend(image.driver(),
            {{"encrypt.state", "inactive"}, {"encrypt.keyslot", "5"}});
  EXPECT_TRUE(absl::IsFailedPrecondition(last)) << last;
  stop = true;
  guest.join();
  ASSERT_TRUE(image.write({0, 2 * kCluster}, 42).ok());
  ASSERT_TRUE(image.close().ok());
  EXPECT_FALSE(image.open().ok());
  const auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, image.memory().content());
  const auto opened = open_bytes(file, {{"encrypt.key-secret", "wrong"}});
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_TRUE(testing::reads_as(**opened, {0, 2 * kCluster}, 42));
}

TEST(EncryptedLuks, AmendRefusesBeforeItChangesAnything) {
  MemoryImage image(encrypted_as("luks"));
  ASSERT_TRUE(image.flush().ok());
  const std::string before = image.memory().content();
  const struct {
    OptionMap changes;
    const char* says;
  } kCases[] = {
      {{{"encrypt.colour", "red"}}, "'encrypt.colour'"},
      {{{"encrypt.new-secret", "wrong"}}, "'state'"},
      {{{"encrypt.state", "active"}, {"compat", "0.11"}}, "0.11"},
      {{{"encrypt.state", "inactive"}, {"encrypt.keyslot", "0"}}, "last"},
      {{{"encrypt.state", "inactive"}, {"encrypt.old-secret", "wrong"}},
       "no key slot"},
      {{{"encrypt.state", "active"}, {"encrypt.new-secret", "gone"}}, "gone"},
  };
  for (const auto& c : kCases) {
    const absl::Status status = amend(image.driver(), c.changes);
    EXPECT_FALSE(status.ok()) << c.says;
    EXPECT_TRUE(absl::StrContains(status.message(), c.says)) << status;
  }
  EXPECT_EQ(image.memory().content(), before);
}

// Every I/O of an amendment fails once: the disk stays what it is, the old
// passphrase opens it, and the new one only if a slot is active.
TEST(EncryptedLuks, AnErrorWhileASlotIsAddedLeavesTheDisk) {
  MemoryImage start(encrypted_as("luks"));
  ASSERT_TRUE(start.write({0, kCluster}, 1).ok());
  ASSERT_TRUE(start.close().ok());
  MemoryImageOptions options = encrypted_as("luks");
  options.bytes = start.memory().content();
  for (int nth = 1;; ++nth) {
    SCOPED_TRACE(nth);
    ASSERT_LT(nth, 60);
    MemoryImage image(options);
    image.file().fail_at({}, EIO, nth);
    const absl::Status status =
        amend(image.driver(), {{"encrypt.state", "active"},
                               {"encrypt.new-secret", "wrong"},
                               {"encrypt.iter-time", "0"}});
    const bool hit = image.file().failure_count() != 0;
    image.file().clear_failures();
    EXPECT_EQ(status.ok(), !hit) << status;
    image.close().IgnoreError();
    const auto file = std::make_shared<MemoryDriver>();
    file->set_content(0, image.memory().content());
    const auto opened = open_bytes(file, {{"encrypt.key-secret", "secret0"}});
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_TRUE(testing::reads_as(**opened, {0, kCluster}, 1));
    const auto other = open_bytes(file, {{"encrypt.key-secret", "wrong"}});
    EXPECT_TRUE(other.ok() || !status.ok()) << other.status();
    if (!hit) break;
  }
}

TEST(EncryptedLuks, AmendOfOthersIsRefused) {
  const OptionMap changes = {{"encrypt.state", "active"},
                             {"encrypt.new-secret", "wrong"}};
  MemoryImage plain(MemoryImageOptions{});
  absl::Status status = amend(plain.driver(), changes);
  EXPECT_TRUE(absl::StrContains(status.message(), "encryption not present"))
      << status;
  MemoryImage old(encrypted_as("aes"));
  status = amend(old.driver(), changes);
  EXPECT_TRUE(absl::StrContains(status.message(), "Only LUKS")) << status;
}

// What the other side changed while this one was inactive.
TEST(EncryptedLuks, ActivatingReadsTheSlotsAnew) {
  MemoryImage image(encrypted_as("luks"));
  ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
  ASSERT_TRUE(image.driver().inactivate().ok());
  const auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, image.memory().content());
  {
    const auto other = open_bytes(file, {{"encrypt.key-secret", "secret0"}});
    ASSERT_TRUE(other.ok());
    ASSERT_TRUE(amend(**other, {{"encrypt.state", "active"},
                                {"encrypt.new-secret", "wrong"},
                                {"encrypt.iter-time", "0"}})
                    .ok());
    ASSERT_TRUE(amend(**other,
                      {{"encrypt.state", "inactive"}, {"encrypt.keyslot", "0"}})
                    .ok());
    ASSERT_TRUE((*other)->close().ok());
  }
  image.memory().set_content(0, file->content());
  ASSERT_TRUE(image.driver().activate().ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 1));
  // It knows that slot 1 is the last.
  EXPECT_FALSE(amend(image.driver(),
                     {{"encrypt.state", "inactive"}, {"encrypt.keyslot", "1"}})
                   .ok());
  // With another volume's header there is nothing to go on with.
  ASSERT_TRUE(image.driver().inactivate().ok());
  MemoryImage stranger(encrypted_as("luks"));
  ASSERT_TRUE(stranger.close().ok());
  image.memory().set_content(0, stranger.memory().content());
  const absl::Status status = image.driver().activate();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
}

class LuksHeader : public ::testing::Test {
 protected:
  void SetUp() override {
    MemoryImage image(encrypted_as("luks"));
    ASSERT_TRUE(image.close().ok());
    bytes_ = image.memory().content();
    extension_ = bytes_.find(std::string("\x05\x37\xbe\x77", 4));
    ASSERT_NE(extension_, std::string::npos);
    area_ = load_big64(reinterpret_cast<const uint8_t*>(
        &bytes_[extension_ + kExtensionHeaderBytes]));
  }
  void put32(size_t at, uint32_t value) {
    store_big32(reinterpret_cast<uint8_t*>(&bytes_[at]), value);
  }
  void put64(size_t at, uint64_t value) {
    store_big64(reinterpret_cast<uint8_t*>(&bytes_[at]), value);
  }
  void expect_refused(absl::StatusCode code, const char* says) {
    const auto file = std::make_shared<MemoryDriver>();
    file->set_content(0, bytes_);
    const auto opened = open_bytes(file, {{"encrypt.key-secret", "secret0"}});
    ASSERT_EQ(opened.status().code(), code) << opened.status();
    EXPECT_TRUE(absl::StrContains(opened.status().message(), says))
        << opened.status();
    EXPECT_EQ(file->content(), bytes_);
  }

  std::string bytes_;
  size_t extension_ = 0;
  uint64_t area_ = 0;
};

using absl::StatusCode;

TEST_F(LuksHeader, OfAnotherMethod) {
  put32(kCryptMethodOffset, kCryptAes);
  expect_refused(StatusCode::kInvalidArgument, "only expected with LUKS");
  put32(kCryptMethodOffset, kCryptNone);
  expect_refused(StatusCode::kInvalidArgument, "only expected with LUKS");
}

TEST_F(LuksHeader, Missing) {
  put32(extension_, 0x12345678);
  expect_refused(StatusCode::kInvalidArgument, "Missing CRYPTO header");
}

TEST_F(LuksHeader, OfAnotherLength) {
  put32(extension_ + 4, 8);
  put64(extension_ + kExtensionHeaderBytes + 8, 0);  // the extensions' end
  expect_refused(StatusCode::kInvalidArgument, "size 8");
}

TEST_F(LuksHeader, OutOfPlace) {
  const size_t offset_at = extension_ + kExtensionHeaderBytes;
  put64(offset_at, area_ + 512);
  expect_refused(StatusCode::kInvalidArgument, "not a multiple of cluster");
  put64(offset_at, area_ + kCluster);
  expect_refused(StatusCode::kDataLoss, "ends beyond the file");
  put64(offset_at, ~uint64_t{0xffff});
  expect_refused(StatusCode::kDataLoss, "ends beyond the file");
  put64(offset_at, 0);
  expect_refused(StatusCode::kInvalidArgument, "not a LUKS volume");
}

TEST_F(LuksHeader, OverATable) {
  // Opened for reading it harms nobody; a writer would.
  const uint64_t l1 = load_big64(
      reinterpret_cast<const uint8_t*>(&bytes_[kL1TableOffsetOffset]));
  put64(kL1TableOffsetOffset, area_ + 16 * kCluster);
  const auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, bytes_);
  const OptionMap secret = {{"encrypt.key-secret", "secret0"}};
  EXPECT_TRUE(open_bytes(file, secret, /*read_only=*/true).ok());
  expect_refused(StatusCode::kDataLoss, "encryption header");
  put64(kL1TableOffsetOffset, l1);
}

TEST_F(LuksHeader, Damaged) {
  const std::string good = bytes_;
  bytes_[area_] = 'X';
  expect_refused(StatusCode::kInvalidArgument, "not a LUKS volume");
  bytes_ = good;
  put32(area_ + 208 + 44, 3);
  expect_refused(StatusCode::kDataLoss, "stripes 3");
  bytes_ = good;
  bytes_[area_ + 4096] ^= 1;
  expect_refused(StatusCode::kPermissionDenied, "Invalid password");
  bytes_ = good;
  put32(area_ + 208 + 4, ~uint32_t{0});
  expect_refused(StatusCode::kUnimplemented, "4294967295 iterations");
  bytes_ = good;
  put32(area_ + 164, ~uint32_t{0});
  expect_refused(StatusCode::kUnimplemented, "4294967295 iterations");
}

// A check needs no key, and counts the header's clusters.
TEST_F(LuksHeader, IsCountedByCheckAndRepair) {
  const auto file = std::make_shared<MemoryDriver>();
  const uint64_t refblock = 2 * kCluster;
  const uint64_t first = area_ / kCluster;
  bytes_[refblock + 2 * first + 1] = 0;
  bytes_[refblock + 2 * (first + 31) + 1] = 3;
  file->set_content(0, bytes_);
  OpenOptions options;
  options.for_check = true;
  const auto opened = open_qcow2(file, options, OpenContext());
  ASSERT_TRUE(opened.ok()) << opened.status();
  auto result = (*opened)->check(CheckOptions());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->corruptions, 1U);
  EXPECT_EQ(result->leaks, 1U);
  CheckOptions fix;
  fix.fix_leaks = fix.fix_errors = true;
  result = (*opened)->check(fix);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->corruptions_fixed, 1U);
  EXPECT_EQ(result->leaks_fixed, 1U);
  EXPECT_TRUE(
      testing::check_image_bytes(file->content(), testing::Leaks::kForbidden)
          .ok());
}

// A table that is rebuilt elsewhere leaves the header where it is.
TEST_F(LuksHeader, SurvivesARebuild) {
  const auto file = std::make_shared<MemoryDriver>();
  put64(kCluster, 0);  // the only refcount block is lost
  file->set_content(0, bytes_);
  OpenOptions options;
  options.for_check = true;
  const auto opened = open_qcow2(file, options, OpenContext());
  ASSERT_TRUE(opened.ok()) << opened.status();
  CheckOptions fix;
  fix.fix_leaks = fix.fix_errors = true;
  const auto result = (*opened)->check(fix);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(
      testing::check_image_bytes(file->content(), testing::Leaks::kForbidden)
          .ok());
  EXPECT_TRUE(open_bytes(file, {{"encrypt.key-secret", "secret0"}}).ok());
}

}  // namespace
}  // namespace spindle::qcow2

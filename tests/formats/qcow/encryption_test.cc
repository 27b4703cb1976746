// Encrypted qcow images: AES, as old as the format.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "formats/qcow/header.h"
#include "formats/qcow/layout.h"
#include "formats/qcow/qcow_driver.h"
#include "formats/qcow/qcow_format.h"
#include "formats/qcow/table_entry.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/formats/qcow2/memory_image.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 4096;

MemoryImageOptions options_of(QcowShape shape = {}) {
  shape.crypt_method = qcow::kCryptAes;
  MemoryImageOptions options;
  options.format = qcow::qcow_format();
  options.size_bytes = shape.size_bytes;
  options.bytes = new_qcow(shape);
  options.encryption = "aes";
  return options;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_with(
    const std::string& bytes, const OptionMap& driver_options,
    bool for_check = false) {
  auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, bytes);
  OpenOptions options;
  options.driver_options = driver_options;
  options.for_check = for_check;
  OpenContext context;
  context.secrets = test_secrets();
  return qcow::open_qcow(std::move(file), options, context);
}

TEST(QcowEncryption, NothingStandsInTheFileAsItIs) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write({kCluster + 512, 1024}, 'x'), absl::OkStatus());
  const auto check = [&] {
    EXPECT_TRUE(image.reads_as({kCluster + 512, 1024}, 'x'));
    // What surrounds it decrypts to zeroes; what is not there is zeroes.
    EXPECT_TRUE(image.reads_as({0, kCluster + 512}, 0));
    EXPECT_TRUE(image.reads_as({kCluster + 1536, 10 * kCluster}, 0));
  };
  check();
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  const std::string file = image.memory().content();
  EXPECT_FALSE(absl::StrContains(file, "xxxx"));
  // The cluster behind the table: no sector of it is as another.
  ASSERT_EQ(file.size(), 3 * kCluster);
  for (uint64_t a = 2 * kCluster; a < 3 * kCluster; a += 512) {
    EXPECT_NE(file.substr(a, 512), std::string(512, '\0'));
    for (uint64_t b = a + 512; b < 3 * kCluster; b += 512)
      EXPECT_NE(file.substr(a, 512), file.substr(b, 512));
  }
  ASSERT_EQ(image.open(), absl::OkStatus());
  check();
}

TEST(QcowEncryption, WritesLeaveTheGuestsMemoryAlone) {
  MemoryImage image(options_of());
  std::string data(2 * kCluster, 'd');
  const std::string before = data;
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(
        image.driver().write(IoVector(data.data(), data.size()), Sector(1)),
        absl::OkStatus());
    EXPECT_EQ(data, before);
  }
}

TEST(QcowEncryption, ABackingFileIsNotEncryptedBecauseTheImageIs) {
  for (const uint32_t cluster_bits : {9u, 16u}) {
    MemoryImageOptions options =
        options_of({.cluster_bits = cluster_bits, .backing_filename = "b"});
    options.backing = std::string(200 * 1024, 'b');
    MemoryImage image(options);
    EXPECT_TRUE(image.reads_as({0, 200 * 1024}, 'b'));
    ASSERT_EQ(image.write({70 * 1024, 512}, 'x'), absl::OkStatus());
    ASSERT_EQ(image.write({199 * 1024, 2048}, 'y'), absl::OkStatus());
    ASSERT_EQ(image.close_and_check(), absl::OkStatus());
    ASSERT_EQ(image.open(), absl::OkStatus());
    EXPECT_TRUE(image.reads_as({0, 70 * 1024}, 'b'));
    EXPECT_TRUE(image.reads_as({70 * 1024, 512}, 'x'));
    EXPECT_TRUE(image.reads_as({70 * 1024 + 512, 128 * 1024}, 'b'));
    EXPECT_TRUE(image.reads_as({199 * 1024, 2048}, 'y'));
    EXPECT_TRUE(image.reads_as({201 * 1024, 100 * 1024}, 0));
  }
}

TEST(QcowEncryption, AnImageWithoutASecretStaysClosed) {
  const std::string bytes = options_of().bytes;
  const auto error = [&](const OptionMap& options) {
    return open_with(bytes, options).status();
  };
  EXPECT_TRUE(absl::IsInvalidArgument(error({})));
  EXPECT_TRUE(absl::StrContains(error({}).message(), "encrypt.key-secret"));
  EXPECT_TRUE(absl::IsNotFound(error({{"encrypt.key-secret", "nobody"}})));
  const absl::Status other =
      error({{"encrypt.key-secret", "secret0"}, {"encrypt.format", "luks"}});
  EXPECT_TRUE(absl::IsInvalidArgument(other));
  EXPECT_TRUE(absl::StrContains(other.message(), "'aes'")) << other;
  EXPECT_EQ(
      error({{"encrypt.key-secret", "secret0"}, {"encrypt.format", "aes"}}),
      absl::OkStatus());
  // To be checked it need not be opened.
  const auto driver = open_with(bytes, {}, /*for_check=*/true);
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_TRUE((*driver)->check({}).ok());
  EXPECT_TRUE((*driver)->info().encrypted);
  EXPECT_TRUE(
      absl::IsFailedPrecondition(read_bytes(**driver, {0, 512}).status()));
}

TEST(QcowEncryption, AnImageThatIsNotEncryptedNeedsNone) {
  const std::string bytes = new_qcow();
  EXPECT_TRUE(open_with(bytes, {{"encrypt.key-secret", "secret0"}}).ok());
  const absl::Status status =
      open_with(bytes, {{"encrypt.format", "aes"}}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "No encryption in image"));
}

// The format cannot tell.
TEST(QcowEncryption, AWrongSecretReadsNoise) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write({0, kCluster}, 'x'), absl::OkStatus());
  ASSERT_EQ(image.close(), absl::OkStatus());
  const auto driver =
      open_with(image.memory().content(), {{"encrypt.key-secret", "wrong"}});
  ASSERT_TRUE(driver.ok()) << driver.status();
  const auto found = read_bytes(**driver, {0, 512});
  ASSERT_TRUE(found.ok());
  EXPECT_NE(*found, std::string(512, 'x'));
  EXPECT_TRUE(reads_as(**driver, {kCluster, kCluster}, 0));
}

// They would stand there for everybody to read.
TEST(QcowEncryption, NothingIsCompressedButWhatOthersWroteIsRead) {
  MemoryImage image(options_of());
  EXPECT_FALSE(image.driver().capabilities().has(Capability::kWriteCompressed));
  std::string data(kCluster, 'c');
  EXPECT_TRUE(absl::IsUnimplemented(image.driver().write_compressed(
      IoVector(data.data(), data.size()), Sector(0))));

  QcowShape shape;
  shape.crypt_method = qcow::kCryptAes;
  const std::string stream = deflated(std::string(kCluster, 'q'));
  qcow::Geometry geometry;
  geometry.cluster_bits = 12;
  MemoryImageOptions options = options_of();
  options.bytes = qcow_with_entries(
      shape,
      {qcow::L2Entry::compressed_at({2 * kCluster}, stream.size(), geometry)
           .raw()});
  put_bytes(&options.bytes, 2 * kCluster, stream);
  MemoryImage other(options);
  EXPECT_TRUE(other.reads_as({0, kCluster}, 'q'));
  // QEMU leaves the rest of the cluster as it is then, and reads noise.
  ASSERT_EQ(other.write({512, 512}, 'w'), absl::OkStatus());
  ASSERT_EQ(other.close_and_check(), absl::OkStatus());
  ASSERT_EQ(other.open(), absl::OkStatus());
  EXPECT_TRUE(other.reads_as({0, 512}, 'q'));
  EXPECT_TRUE(other.reads_as({512, 512}, 'w'));
  EXPECT_TRUE(other.reads_as({1024, kCluster - 1024}, 'q'));
}

TEST(QcowEncryption, TheFileDoesNotHoldWhatTheGuestHas) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write({0, kCluster}, 'x'), absl::OkStatus());
  const auto status = image.driver().block_status(
      {0, 2 * kCluster}, BlockStatusScope::kWholeChain);
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->data && status->allocated);
  EXPECT_EQ(status->length, kCluster);
  EXPECT_EQ(status->host_offset, std::nullopt);
  EXPECT_TRUE(image.driver().info().encrypted);
}

// ---- create -----------------------------------------------------------------

absl::Status create_with(const OptionMap& more, std::string* bytes = nullptr) {
  CreateOptions options;
  options.size_bytes = 1 << 20;
  options.options = more;
  options.secrets = test_secrets();
  absl::Status status = qcow::qcow_format()->check_create(options);
  if (!status.ok()) return status;
  auto file = std::make_shared<MemoryDriver>();
  status = qcow::qcow_format()->create(file, options, {});
  if (bytes != nullptr) *bytes = file->content();
  return status;
}

TEST(QcowEncryption, IsCreatedWithASecretThatIsThere) {
  const std::string key = "encrypt.key-secret";
  std::string bytes;
  ASSERT_EQ(create_with({{"encrypt.format", "aes"}, {key, "secret0"}}, &bytes),
            absl::OkStatus());
  EXPECT_EQ(bytes, new_qcow({.crypt_method = qcow::kCryptAes}));
  ASSERT_EQ(create_with({{"encryption", "on"}, {key, "secret0"}}, &bytes),
            absl::OkStatus());
  EXPECT_EQ(bytes, new_qcow({.crypt_method = qcow::kCryptAes}));
  ASSERT_EQ(create_with({{"encryption", "off"}}, &bytes), absl::OkStatus());
  EXPECT_EQ(bytes, new_qcow());

  const auto says = [&](const OptionMap& options, absl::string_view part) {
    const absl::Status status = create_with(options);
    EXPECT_FALSE(status.ok());
    EXPECT_TRUE(absl::StrContains(status.message(), part)) << status;
  };
  says({{"encrypt.format", "aes"}}, "'encrypt.key-secret' is required");
  says({{"encryption", "on"}}, "'encrypt.key-secret' is required");
  says({{"encrypt.format", "luks"}, {key, "secret0"}},
       "Unsupported encryption format");
  says({{key, "secret0"}}, "'encrypt.format' is missing");
  says({{"encrypt.format", "aes"}, {key, "nobody"}}, "nobody");
  says({{"encrypt.format", "aes"}, {"encryption", "on"}, {key, "secret0"}},
       "at the same time");
}

}  // namespace
}  // namespace spindle::testing

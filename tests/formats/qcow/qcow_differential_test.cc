// qcow images beside QEMU's: made, written, read and described by both.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "engine/block_device.h"
#include "engine/byte_order.h"
#include "engine/io_vector.h"
#include "formats/qcow/layout.h"
#include "formats/qcow/qcow_format.h"
#include "gtest/gtest.h"
#include "tests/differential/our_image.h"
#include "tests/differential/programs.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr Whose kBoth[] = {Whose::kOurs, Whose::kQemus};

class Qcow : public ScratchImage {
 public:
  Qcow() : ScratchImage("qcow") {}
  explicit Qcow(const std::string& bytes) : Qcow() {
    set_content(Bytes(bytes.begin(), bytes.end()));
  }
  std::string text() const {
    const Bytes bytes = content();
    return std::string(bytes.begin(), bytes.end());
  }
  // What our own check, which QEMU has not, finds.
  absl::Status check() const {
    return check_own_bytes(*qcow::qcow_format(), text());
  }
};

// A raw file of noise, whose name is as long as every other one's.
class RawFile : public ScratchImage {
 public:
  RawFile(uint64_t bytes, std::mt19937_64* random) : ScratchImage("raw") {
    Bytes noise(bytes);
    for (uint8_t& byte : noise) byte = static_cast<uint8_t>((*random)());
    set_content(noise);
  }
};

// QEMU asks for each cluster by itself: not the map of a disk that is large.
void expect_same_facts(const std::string& path, bool is_large = false) {
  for (const char* output : {"--output=human", "--output=json"}) {
    expect_same_output({"info", output, path});
    expect_same_output({"info", output, "-f", "qcow", path});
    if (!is_large) expect_same_output({"map", output, "-f", "qcow", path});
  }
}

Bytes our_content(const ImageFile& image) {
  const auto device = open_ours(image, /*read_only=*/true);
  EXPECT_TRUE(device.ok()) << device.status();
  if (!device.ok()) return {};
  auto content = read_everything(**device);
  EXPECT_TRUE(content.ok()) << content.status();
  return content.ok() ? *std::move(content) : Bytes();
}

void expect_same_content(const ImageFile& image) {
  const auto theirs = qemu_content(image);
  ASSERT_TRUE(theirs.ok()) << theirs.status();
  EXPECT_TRUE(our_content(image) == *theirs);
}

// ---- create -----------------------------------------------------------------

TEST(QcowCreate, GivesQemusBytes) {
  std::mt19937_64 random(test_seed());
  const RawFile base(70144, &random);
  for (const char* size :
       {"1", "511", "512", "1000", "1M", "2M", "2097664", "10G", "3T"}) {
    for (const bool overlay : {false, true}) {
      const Qcow ours;
      const Qcow theirs;
      const auto create = [&](Whose whose, const Qcow& image) {
        Arguments arguments = {"create", "-f", "qcow", image.path(), size};
        if (overlay) {
          arguments.insert(arguments.end(), {"-b", base.path(), "-F", "raw"});
        }
        SeparateResult result = run_program(whose, arguments);
        EXPECT_EQ(result.exit_code, 0) << result.errors;
        return absl::StrReplaceAll(result.output, {{image.path(), "IMAGE"}});
      };
      SCOPED_TRACE(absl::StrCat(size, overlay ? " over a backing file" : ""));
      EXPECT_EQ(create(Whose::kOurs, ours), create(Whose::kQemus, theirs));
      EXPECT_TRUE(ours.content() == theirs.content());
      expect_same_facts(theirs.path(), absl::string_view(size) == "3T");
      EXPECT_EQ(ours.check(), absl::OkStatus());
    }
  }
  // As long as what it lies over, in whole sectors.
  const RawFile odd(70000, &random);
  const Qcow ours;
  const Qcow theirs;
  for (const Whose whose : kBoth) {
    const SeparateResult result = run_program(
        whose, {"create", "-f", "qcow", "-b", odd.path(), "-F", "raw",
                (whose == Whose::kOurs ? ours : theirs).path()});
    EXPECT_EQ(result.exit_code, 0) << result.errors;
  }
  EXPECT_TRUE(ours.content() == theirs.content());
}

// The protocol's, of a file that has no length yet.
TEST(QcowCreate, OptionsOfTheFileHaveNoEffectOnItsBytes) {
  const Qcow plain;
  ASSERT_TRUE(qemu_create({plain.image(), 16 << 20, "", {}}).ok());
  for (const char* option :
       {"preallocation=off", "preallocation=falloc", "preallocation=full"}) {
    const Qcow image;
    EXPECT_EQ(run_program(Whose::kOurs, {"create", "-f", "qcow", "-o", option,
                                         image.path(), "16M"})
                  .exit_code,
              0);
    EXPECT_TRUE(image.content() == plain.content());
  }
}

TEST(QcowCreate, RefusesWhatQemuRefuses) {
  const Qcow image;
  const Arguments refused[] = {
      {image.path(), "0"},
      {"-o", "cluster_size=4096", image.path(), "1M"},
      {"-o", "compat=1.1", image.path(), "1M"},
      {"-o", "encryption=maybe", image.path(), "1M"},
      {"-u", "-b", "nowhere", image.path(), "1M"},
      {"-u", "-b", "nowhere", "-F", "raw", image.path()},
  };
  for (const Arguments& more : refused) {
    Arguments arguments = {"create", "-f", "qcow"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const SeparateResult ours = run_program(Whose::kOurs, arguments);
    EXPECT_NE(::access(image.path().c_str(), F_OK), 0)
        << "left behind: " << absl::StrJoin(more, " ");
    const SeparateResult theirs = run_program(Whose::kQemus, arguments);
    ::unlink(image.path().c_str());
    SCOPED_TRACE(absl::StrJoin(more, " "));
    EXPECT_EQ(ours.exit_code, 1);
    EXPECT_EQ(theirs.exit_code, 1);
    EXPECT_EQ(ours.errors, theirs.errors);
  }
}

// QEMU leaves a file that it cannot open; we leave none.
TEST(QcowCreate, RefusesWhatNobodyCouldOpen) {
  for (const char* size : {"512T", "8P", "9223372036854775807"}) {
    const Qcow image;
    const SeparateResult result =
        run_program(Whose::kOurs, {"create", "-f", "qcow", image.path(), size});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_TRUE(absl::StrContains(result.errors, "Image too large"))
        << result.errors;
    EXPECT_NE(::access(image.path().c_str(), F_OK), 0);
  }
}

TEST(QcowCreate, WhatQcowCannotDoIsSaidAsQemuSaysIt) {
  const Qcow image;
  ASSERT_TRUE(qemu_create({image.image(), 3 << 20, "", {}}).ok());
  const Bytes before = image.content();
  expect_same_output({"check", "-r", "all", image.path()});
  expect_same_output({"resize", image.path(), "5M"});
  expect_same_output({"snapshot", "-c", "s", image.path()});
  expect_same_output({"amend", "-o", "size=5M", image.path()});
  EXPECT_TRUE(image.content() == before);
}

// QEMU has none for this format.
TEST(QcowCheck, OursFindsDamage) {
  const Qcow image(qcow_with_entries({}, {8192, 8192}));
  EXPECT_EQ(run_program(Whose::kQemus, {"check", image.path()}).exit_code, 63);
  SeparateResult result = run_program(Whose::kOurs, {"check", image.path()});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_TRUE(absl::StrContains(result.output, "2 errors were found"))
      << result.output << result.errors;
  const Qcow sound;
  ASSERT_TRUE(qemu_create({sound.image(), 3 << 20, "", {}}).ok());
  ASSERT_TRUE(qemu_io(sound.image(), {"write 1M 64k"}).ok());
  result = run_program(Whose::kOurs, {"check", sound.path()});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_TRUE(absl::StrContains(result.output, "No errors were found"));
  EXPECT_TRUE(absl::StrContains(result.output, "16/768 = 2.08% allocated"))
      << result.output;
}

// ---- Reading and writing ----------------------------------------------------

struct Edit {
  uint64_t offset;
  uint64_t length;
  uint8_t value;
};

std::vector<Edit> random_edits(std::mt19937_64& random, uint64_t disk_bytes) {
  std::vector<Edit> edits;
  for (uint8_t value = 1; value <= 12; ++value) {
    const uint64_t most = std::min<uint64_t>(disk_bytes / 512, 400);
    const uint64_t sectors = 1 + random() % (random() % 3 != 0 ? 9 : most);
    const uint64_t offset = random() % (disk_bytes / 512 - sectors + 1) * 512;
    edits.push_back({offset, sectors * 512, value});
  }
  return edits;
}

void edit_as_qemu(const ImageFile& image, const std::vector<Edit>& edits) {
  Arguments commands;
  for (const Edit& edit : edits) {
    commands.push_back(absl::StrCat("write -P ", int{edit.value}, " ",
                                    edit.offset, " ", edit.length));
  }
  const absl::Status status = qemu_io(image, commands);
  ASSERT_TRUE(status.ok()) << status;
}

void edit_as_we_do(const ImageFile& image, const std::vector<Edit>& edits) {
  const auto device = open_ours(image, /*read_only=*/false);
  ASSERT_TRUE(device.ok()) << device.status();
  for (const Edit& edit : edits) {
    Bytes bytes(edit.length, edit.value);
    ASSERT_TRUE((*device)
                    ->pwrite(IoVector(bytes.data(), bytes.size()), edit.offset)
                    .ok());
  }
  const absl::Status closed = (*device)->close();
  ASSERT_TRUE(closed.ok()) << closed;
}

// What edits make of a disk.
void edit_model(Bytes* disk, const std::vector<Edit>& edits) {
  for (const Edit& edit : edits)
    std::fill_n(disk->begin() + static_cast<ptrdiff_t>(edit.offset),
                edit.length, edit.value);
}

// The same edits give the same file, whoever makes them, in turns.  The shapes
// that QEMU makes, and others.
TEST(QcowImages, AreTheSameInBothHands) {
  std::mt19937_64 random(test_seed());
  std::vector<QcowShape> shapes = {
      {.cluster_bits = 12, .l2_bits = 9}, {.cluster_bits = 9, .l2_bits = 12},
      {.cluster_bits = 9, .l2_bits = 6},  {.cluster_bits = 16, .l2_bits = 13},
      {.cluster_bits = 16, .l2_bits = 6}, {.cluster_bits = 14, .l2_bits = 8}};
  for (QcowShape& shape : shapes) {
    shape.size_bytes = (uint64_t{5} << 20) + 512 * (random() % 4000);
    SCOPED_TRACE(absl::StrCat("clusters 2^", shape.cluster_bits, ", tables 2^",
                              shape.l2_bits, ", size ", shape.size_bytes));
    const Qcow ours(new_qcow(shape));
    const Qcow theirs(new_qcow(shape));
    const Qcow mixed(new_qcow(shape));
    Bytes disk(shape.size_bytes);
    for (int turn = 0; turn < 3; ++turn) {
      const std::vector<Edit> edits = random_edits(random, shape.size_bytes);
      edit_model(&disk, edits);
      edit_as_qemu(theirs.image(), edits);
      edit_as_we_do(ours.image(), edits);
      if (turn % 2 == 0) {
        edit_as_we_do(mixed.image(), edits);
      } else {
        edit_as_qemu(mixed.image(), edits);
      }
      if (HasFatalFailure()) return;
      EXPECT_TRUE(ours.content() == theirs.content());
      EXPECT_TRUE(mixed.content() == theirs.content());
      EXPECT_TRUE(our_content(theirs.image()) == disk);
      expect_same_content(ours.image());
      EXPECT_EQ(ours.check(), absl::OkStatus());
    }
    expect_same_facts(ours.path());
  }
}

// QEMU copies nothing from the backing file: with its clusters of 512 bytes it
// need not.  With larger ones our writes must still be right, and readable.
TEST(QcowImages, OverBackingFilesOfAnyFormatAndLength) {
  std::mt19937_64 random(test_seed());
  for (const std::string& format : {"raw", "qcow2", "qcow", "vdi"}) {
    for (const uint64_t base_bytes : {uint64_t{300} << 10, uint64_t{3} << 20}) {
      const RawFile raw(base_bytes + (format == "vdi" ? 0 : 512), &random);
      const ScratchImage base(format);
      ASSERT_TRUE(qemu_convert(raw.image(), base.image(), "").ok());
      for (const uint32_t cluster_bits : {9u, 12u, 16u}) {
        SCOPED_TRACE(absl::StrCat(format, " of ", base_bytes, " bytes, 2^",
                                  cluster_bits));
        constexpr uint64_t kDisk = (1 << 20) + 512;
        const QcowShape shape{.size_bytes = kDisk,
                              .cluster_bits = cluster_bits,
                              .l2_bits = 9,
                              .backing_filename = base.path()};
        const Qcow image(new_qcow(shape));
        Bytes disk = raw.content();
        disk.resize(kDisk);
        EXPECT_TRUE(our_content(image.image()) == disk);
        for (int turn = 0; turn < 3; ++turn) {
          const std::vector<Edit> edits = random_edits(random, kDisk);
          edit_model(&disk, edits);
          if (turn == 1 && cluster_bits == 9) {
            edit_as_qemu(image.image(), edits);
          } else {
            edit_as_we_do(image.image(), edits);
          }
          if (HasFatalFailure()) return;
        }
        EXPECT_TRUE(our_content(image.image()) == disk);
        const auto theirs = qemu_content(image.image());
        ASSERT_TRUE(theirs.ok()) << theirs.status();
        EXPECT_TRUE(*theirs == disk);
        EXPECT_EQ(image.check(), absl::OkStatus());
        expect_same_facts(image.path());
      }
    }
  }
}

// ---- Encrypted --------------------------------------------------------------

// Shorter than a key, as long, and longer.
constexpr const char* kPassphrases[] = {"a", "0123456789abcdef",
                                        "0123456789abcdefghij"};

ImageFile encrypted(const Qcow& image, const std::string& passphrase) {
  ImageFile file = image.image();
  file.passphrase = passphrase;
  return file;
}

std::string secret_object(const std::string& passphrase) {
  return absl::StrCat("secret,id=secret0,data=", passphrase);
}

TEST(QcowEncrypted, IsTheSameInBothHands) {
  std::mt19937_64 random(test_seed());
  for (const std::string passphrase : kPassphrases) {
    for (const uint32_t cluster_bits : {9u, 12u, 16u}) {
      SCOPED_TRACE(absl::StrCat(passphrase, ", clusters 2^", cluster_bits));
      const QcowShape shape{
          .size_bytes = (uint64_t{2} << 20) + 512 * (random() % 4000),
          .cluster_bits = cluster_bits,
          .l2_bits = 9,
          .crypt_method = qcow::kCryptAes};
      const Qcow ours(new_qcow(shape));
      const Qcow theirs(new_qcow(shape));
      Bytes disk(shape.size_bytes);
      for (int turn = 0; turn < 2; ++turn) {
        const std::vector<Edit> edits = random_edits(random, shape.size_bytes);
        edit_model(&disk, edits);
        edit_as_qemu(encrypted(theirs, passphrase), edits);
        edit_as_we_do(encrypted(ours, passphrase), edits);
        if (HasFatalFailure()) return;
        EXPECT_TRUE(ours.content() == theirs.content());
        EXPECT_TRUE(our_content(encrypted(theirs, passphrase)) == disk);
        expect_same_content(encrypted(ours, passphrase));
        EXPECT_EQ(ours.check(), absl::OkStatus());
      }
      expect_same_output({"info", ours.path()});
      expect_same_output({"info", "--output=json", ours.path()});
    }
  }
}

TEST(QcowEncrypted, LiesOverOthersThatAreToo) {
  std::mt19937_64 random(test_seed());
  const std::string passphrase = kPassphrases[0];
  constexpr uint64_t kDisk = 1 << 20;
  const RawFile raw(kDisk / 2, &random);
  const Qcow base(
      new_qcow({.size_bytes = kDisk / 2, .crypt_method = qcow::kCryptAes}));
  {
    const auto device = open_ours(encrypted(base, passphrase), false);
    ASSERT_TRUE(device.ok()) << device.status();
    Bytes bytes = raw.content();
    ASSERT_TRUE(
        (*device)->pwrite(IoVector(bytes.data(), bytes.size()), 0).ok());
    ASSERT_TRUE((*device)->close().ok());
  }
  const Qcow overlay(new_qcow({.size_bytes = kDisk,
                               .cluster_bits = 9,
                               .l2_bits = 12,
                               .crypt_method = qcow::kCryptAes,
                               .backing_filename = base.path()}));
  ImageFile image = encrypted(overlay, passphrase);
  image.more_options = ",backing.encrypt.key-secret=secret0";
  const auto open = [&](bool read_only) {
    return open_ours(image, read_only,
                     {{"backing.encrypt.key-secret", "secret0"}});
  };
  Bytes disk = raw.content();
  disk.resize(kDisk);
  for (const bool we : {true, false}) {
    const std::vector<Edit> edits = random_edits(random, kDisk);
    edit_model(&disk, edits);
    if (we) {
      const auto device = open(/*read_only=*/false);
      ASSERT_TRUE(device.ok()) << device.status();
      for (const Edit& edit : edits) {
        Bytes bytes(edit.length, edit.value);
        ASSERT_TRUE(
            (*device)
                ->pwrite(IoVector(bytes.data(), bytes.size()), edit.offset)
                .ok());
      }
      ASSERT_TRUE((*device)->close().ok());
    } else {
      edit_as_qemu(image, edits);
    }
    const auto device = open(/*read_only=*/true);
    ASSERT_TRUE(device.ok()) << device.status();
    const auto ours = read_everything(**device);
    ASSERT_TRUE(ours.ok()) << ours.status();
    EXPECT_TRUE(*ours == disk);
    const auto theirs = qemu_content(image);
    ASSERT_TRUE(theirs.ok()) << theirs.status();
    EXPECT_TRUE(*theirs == disk);
  }
}

// Both say the same, of a file that both can make or neither can.
TEST(QcowEncrypted, IsCreatedAsQemuDoes) {
  for (const char* options :
       {"encrypt.format=aes,encrypt.key-secret=secret0",
        "encryption=on,encrypt.key-secret=secret0", "encryption=off",
        "encryption=off,encrypt.format=aes,encrypt.key-secret=secret0",
        // What is refused.
        "encryption=on", "encrypt.format=aes", "encrypt.key-secret=secret0",
        "encrypt.format=luks,encrypt.key-secret=secret0", "encrypt.format=none",
        "encrypt.format=aes,encrypt.key-secret=nobody",
        "encryption=on,encrypt.format=aes,encrypt.key-secret=secret0"}) {
    SCOPED_TRACE(options);
    const Qcow ours;
    const Qcow theirs;
    SeparateResult results[2];
    for (const Whose whose : kBoth) {
      const Qcow& image = whose == Whose::kOurs ? ours : theirs;
      SeparateResult& result = results[whose == Whose::kOurs ? 0 : 1];
      result = run_program(
          whose, {"create", "--object", secret_object(kPassphrases[0]), "-f",
                  "qcow", "-o", options, image.path(), "1M"});
      for (std::string* text : {&result.output, &result.errors})
        *text = absl::StrReplaceAll(*text, {{image.path(), "IMAGE"}});
    }
    EXPECT_EQ(results[0].exit_code, results[1].exit_code);
    EXPECT_EQ(results[0].output, results[1].output);
    EXPECT_EQ(results[0].errors, results[1].errors);
    if (results[1].exit_code == 0)
      EXPECT_TRUE(ours.content() == theirs.content());
  }
}

TEST(QcowEncrypted, IsConvertedToAndFrom) {
  std::mt19937_64 random(test_seed());
  const ScratchImage source("raw");
  Bytes content(700 * 512);
  for (uint8_t& byte : content) byte = static_cast<uint8_t>(random() % 3);
  source.set_content(content);
  const std::string secret = secret_object(kPassphrases[1]);
  const Qcow ours;
  const Qcow theirs;
  for (const Whose whose : kBoth) {
    const Qcow& image = whose == Whose::kOurs ? ours : theirs;
    const SeparateResult result = run_program(
        whose, {"convert", "--object", secret, "-f", "raw", "-O", "qcow", "-o",
                "encrypt.format=aes,encrypt.key-secret=secret0", source.path(),
                image.path()});
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_TRUE(our_content(encrypted(image, kPassphrases[1])) == content);
    const ScratchImage back("raw");
    const SeparateResult read = run_program(
        Whose::kOurs,
        {"convert", "--object", secret, "--image-opts", "-O", "raw",
         absl::StrCat("driver=qcow,encrypt.key-secret=secret0,file.filename=",
                      image.path()),
         back.path()});
    ASSERT_EQ(read.exit_code, 0) << read.errors;
    EXPECT_TRUE(back.content() == content);
  }
  EXPECT_TRUE(ours.content() == theirs.content());
  const Qcow compressed;
  expect_same_output({"convert", "--object", secret, "-c", "-f", "raw", "-O",
                      "qcow", "-o",
                      "encrypt.format=aes,encrypt.key-secret=secret0",
                      source.path(), compressed.path()});
}

// ---- Compressed, and converted ----------------------------------------------

// Half noise, half what can be compressed, and holes.
Bytes mixed_content(uint64_t bytes, std::mt19937_64* random) {
  Bytes content(bytes);
  for (uint64_t at = 0; at < bytes;) {
    const uint64_t end = std::min(bytes, at + 512 * (1 + (*random)() % 60));
    const uint64_t kind = (*random)() % 4;
    const auto value = static_cast<uint8_t>((*random)());
    for (; at < end; ++at) {
      if (kind == 0) content[at] = static_cast<uint8_t>((*random)());
      if (kind >= 2) content[at] = static_cast<uint8_t>(value + at % 7);
    }
  }
  return content;
}

TEST(QcowImages, AreConvertedToQemusBytes) {
  std::mt19937_64 random(test_seed());
  for (const uint64_t bytes : {uint64_t{3} << 20, uint64_t{1234} * 512}) {
    const ScratchImage source("raw");
    source.set_content(mixed_content(bytes, &random));
    for (const bool compressed : {false, true}) {
      const Qcow ours;
      const Qcow theirs;
      for (const Whose whose : kBoth) {
        Arguments arguments = {"convert", "-f", "raw", "-O", "qcow"};
        if (compressed) arguments.push_back("-c");
        arguments.push_back(source.path());
        arguments.push_back((whose == Whose::kOurs ? ours : theirs).path());
        const SeparateResult result = run_program(whose, arguments);
        // Having compressed everything, QEMU says that it failed.
        EXPECT_EQ(result.exit_code,
                  whose == Whose::kQemus && compressed ? 1 : 0);
        EXPECT_EQ(result.errors, "");
      }
      // Compressed clusters lie in the order in which they were ready.
      if (!compressed) EXPECT_TRUE(ours.content() == theirs.content());
      EXPECT_TRUE(our_content(theirs.image()) == source.content());
      EXPECT_EQ(qemu_compare(source.image(), ours.image()), absl::OkStatus());
      EXPECT_EQ(ours.check(), absl::OkStatus());
      expect_same_facts(ours.path());
      // Written over by both.
      Bytes disk = source.content();
      for (const bool we : {true, false, true}) {
        const std::vector<Edit> edits = random_edits(random, bytes);
        edit_model(&disk, edits);
        if (we) {
          edit_as_we_do(ours.image(), edits);
        } else {
          edit_as_qemu(ours.image(), edits);
        }
        if (HasFatalFailure()) return;
        EXPECT_TRUE(our_content(ours.image()) == disk);
        expect_same_content(ours.image());
      }
      EXPECT_EQ(ours.check(), absl::OkStatus());
    }
  }
}

TEST(QcowImages, AreConvertedFrom) {
  std::mt19937_64 random(test_seed());
  const ScratchImage source("raw");
  source.set_content(mixed_content(1 << 20, &random));
  const Qcow image;
  run_program(Whose::kQemus, {"convert", "-f", "raw", "-O", "qcow", "-c",
                              source.path(), image.path()});
  for (const std::string& format : {"raw", "qcow2", "vdi", "qcow"}) {
    const ScratchImage target(format);
    const SeparateResult result = run_program(
        Whose::kOurs,
        {"convert", "-f", "qcow", "-O", format, image.path(), target.path()});
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_EQ(qemu_compare(source.image(), target.image()), absl::OkStatus());
  }
}

// ---- What others make of it -------------------------------------------------

std::string qcowinfo_line(const std::string& path, absl::string_view name) {
  const auto output = run_tool_ok({"qcowinfo", path});
  EXPECT_TRUE(output.ok()) << output.status();
  if (!output.ok()) return "";
  const size_t at = output->find(std::string(name));
  if (at == std::string::npos) return "";
  const size_t value = output->find(": ", at) + 2;
  return output->substr(value, output->find('\n', value) - value);
}

TEST(QcowJudges, QcowinfoReadsOurs) {
  const Qcow image;
  ASSERT_EQ(
      run_program(Whose::kOurs, {"create", "-f", "qcow", "-u", "-b", "base.raw",
                                 "-F", "raw", image.path(), "3000320"})
          .exit_code,
      0);
  EXPECT_EQ(qcowinfo_line(image.path(), "Format version"), "1");
  EXPECT_TRUE(absl::StrContains(qcowinfo_line(image.path(), "Media size"),
                                "3000320 bytes"));
  EXPECT_EQ(qcowinfo_line(image.path(), "Backing filename"), "base.raw");
  EXPECT_EQ(qcowinfo_line(image.path(), "Encryption method"), "None");
}

// ---- What is damaged --------------------------------------------------------

// A disk ends with its last whole sector, for both.
TEST(QcowDamage, OddSizesAreTheSameToBoth) {
  for (const uint64_t size : {2u, 511u, 512u, 1000u, 1023u, 5000u}) {
    const Qcow image(new_qcow({.size_bytes = size}));
    SCOPED_TRACE(size);
    expect_same_output({"info", "-f", "qcow", image.path()});
  }
}

// What QEMU refuses, we refuse.
TEST(QcowDamage, OfTheHeaderIsRefusedByBoth) {
  struct Poke {
    const char* field;
    size_t offset;
    std::string bytes;
  };
  const auto big32 = [](uint32_t value) {
    std::string bytes(4, '\0');
    store_big32(bytes.data(), value);
    return bytes;
  };
  const auto big64 = [](uint64_t value) {
    std::string bytes(8, '\0');
    store_big64(bytes.data(), value);
    return bytes;
  };
  for (const Poke& poke : std::vector<Poke>{
           {"magic", qcow::kMagicOffset, "QFi"},
           {"version 0", qcow::kVersionOffset, big32(0)},
           {"version 4", qcow::kVersionOffset, big32(4)},
           {"size 0", qcow::kSizeOffset, big64(0)},
           {"size 1", qcow::kSizeOffset, big64(1)},
           {"size 512T", qcow::kSizeOffset, big64(uint64_t{512} << 40)},
           {"size", qcow::kSizeOffset, big64(~uint64_t{0})},
           {"cluster bits 8", qcow::kClusterBitsOffset, "\x08"},
           {"cluster bits 17", qcow::kClusterBitsOffset, "\x11"},
           {"L2 bits 5", qcow::kL2BitsOffset, "\x05"},
           {"L2 bits 14", qcow::kL2BitsOffset, "\x0e"},
           {"crypt method", qcow::kCryptMethodOffset, big32(2)},
           {"L1 table", qcow::kL1TableOffsetOffset, big64(uint64_t{1} << 63)},
           {"name", qcow::kBackingFileOffsetOffset, big64(48) + big32(1024)},
       }) {
    std::string bytes = new_qcow();
    bytes.resize(8192);
    put_bytes(&bytes, poke.offset, poke.bytes);
    const Qcow image(bytes);
    SCOPED_TRACE(poke.field);
    for (const Whose whose : kBoth) {
      const SeparateResult result =
          run_program(whose, {"info", "-f", "qcow", image.path()});
      EXPECT_EQ(result.exit_code, 1);
      EXPECT_EQ(result.output, "");
      EXPECT_TRUE(absl::StrContains(
          result.errors, absl::StrCat("Could not open '", image.path(), "'")));
    }
  }
}

// Where entries make no sense both fail, or both read the same.
TEST(QcowDamage, OfEntriesReadsAlike) {
  const std::string stream = deflated(std::string(4096, 'q'));
  const auto compressed = [](uint64_t offset, uint64_t bytes) {
    return qcow::kL2Compressed | bytes << 51 | offset;
  };
  std::string bytes = qcow_with_entries(
      {}, {8192 + 512, 8192 + 100, uint64_t{1} << 30,
           compressed(8192, stream.size()), compressed(8192, stream.size() - 3),
           compressed(8192, stream.size() + 40), compressed(8192, 0),
           compressed(uint64_t{1} << 30, 100)});
  put_bytes(&bytes, 8192, stream);
  bytes.resize(16384);
  const Qcow image(bytes);
  const auto device = open_ours(image.image(), /*read_only=*/true);
  ASSERT_TRUE(device.ok()) << device.status();
  for (uint64_t i = 0; i < 8; ++i) {
    Bytes cluster(4096);
    const absl::Status ours =
        (*device)->pread(IoVector(cluster.data(), cluster.size()), i * 4096);
    const bool uniform =
        std::count(cluster.begin(), cluster.end(), cluster[0]) == 4096;
    const std::string command = absl::StrCat(
        "read ", uniform ? absl::StrCat("-P ", int{cluster[0]}, " ") : "",
        i * 4096, " 4096");
    EXPECT_EQ(ours.ok(),
              qemu_io(image.image(), {command}, {.read_only = true}).ok())
        << i << " " << ours;
  }
}

}  // namespace
}  // namespace spindle::testing

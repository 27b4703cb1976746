// VDI images beside QEMU's: made, written, read, described and checked by both.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "engine/block_device.h"
#include "engine/byte_order.h"
#include "engine/io_vector.h"
#include "formats/vdi/layout.h"
#include "gtest/gtest.h"
#include "tests/differential/our_image.h"
#include "tests/differential/programs.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint64_t kMiB = uint64_t{1} << 20;

class Scratch : public ScratchImage {
 public:
  Scratch() : ScratchImage("vdi") {}

  // As it is in the file, without what is random.
  Bytes content() const {
    Bytes bytes = ScratchImage::content();
    if (bytes.size() < vdi::kHeaderBytes) return {};
    std::fill_n(bytes.begin() + vdi::kImageUuidOffset, 2 * vdi::kUuidBytes, 0);
    return bytes;
  }
  void poke(uint64_t offset, uint32_t value) const {
    Bytes bytes = ScratchImage::content();
    ASSERT_LE(offset + 4, bytes.size());
    store_little32(&bytes[offset], value);
    set_content(bytes);
  }
};

constexpr Whose kBoth[] = {Whose::kOurs, Whose::kQemus};

void expect_same_facts(const std::string& path) {
  for (const char* output : {"--output=human", "--output=json"}) {
    expect_same_output({"info", output, path});
    expect_same_output({"info", output, "-f", "vdi", path});
    expect_same_output({"map", output, "-f", "vdi", path});
    expect_same_output({"check", output, path});
  }
}

// ---- create -----------------------------------------------------------------

TEST(VdiCreate, GivesQemusBytes) {
  for (const char* size :
       {"0", "1", "1000", "1M", "1048577", "10M", "129M", "100G", "3T"}) {
    for (const char* options : {"static=off", "static=on"}) {
      const bool is_static = std::string(options) == "static=on";
      if (is_static &&
          std::string(size).find_first_of("9GT") != std::string::npos)
        continue;
      const Scratch ours;
      const Scratch theirs;
      const auto create = [&](Whose whose, const Scratch& image) {
        SeparateResult result = run_program(
            whose, {"create", "-f", "vdi", "-o", options, image.path(), size});
        EXPECT_EQ(result.exit_code, 0) << result.errors;
        return absl::StrReplaceAll(result.output, {{image.path(), "IMAGE"}});
      };
      SCOPED_TRACE(absl::StrCat(size, " ", options));
      EXPECT_EQ(create(Whose::kOurs, ours), create(Whose::kQemus, theirs));
      EXPECT_TRUE(ours.content() == theirs.content());
      expect_same_facts(ours.path());
      expect_same_facts(theirs.path());
    }
  }
}

TEST(VdiCreate, RefusesWhatQemuRefuses) {
  const Scratch image;
  const Arguments refused[] = {{"-o", "static=maybe", image.path(), "1M"},
                               {"-o", "block-size=65536", image.path(), "1M"},
                               {image.path(), "536870785M"},
                               {image.path(), "512T"},
                               {"-b", "x", "-F", "raw", image.path(), "1M"},
                               {"-o", "help"}};
  for (const Arguments& more : refused) {
    Arguments arguments = {"create", "-f", "vdi"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const SeparateResult ours = run_program(Whose::kOurs, arguments);
    ::unlink(image.path().c_str());
    const SeparateResult theirs = run_program(Whose::kQemus, arguments);
    ::unlink(image.path().c_str());
    SCOPED_TRACE(absl::StrJoin(more, " "));
    EXPECT_EQ(ours.exit_code, theirs.exit_code);
    EXPECT_EQ(ours.errors, theirs.errors);
  }
}

TEST(VdiCreate, WhatVdiCannotDoIsSaidAsQemuSaysIt) {
  const Scratch image;
  ASSERT_TRUE(qemu_create({image.image(), 3 * kMiB, "", {}}).ok());
  const Bytes before = image.content();
  expect_same_output({"check", "-r", "all", image.path()});
  expect_same_output({"resize", image.path(), "5M"});
  EXPECT_TRUE(image.content() == before);
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
    const uint64_t length = 512 * (1 + random() % (random() % 3 ? 64 : 4000));
    const uint64_t offset = random() % ((disk_bytes - length) / 512) * 512;
    edits.push_back({offset, length, value});
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

Bytes our_content(const ImageFile& image) {
  const auto device = open_ours(image, /*read_only=*/true);
  EXPECT_TRUE(device.ok()) << device.status();
  if (!device.ok()) return {};
  auto content = read_everything(**device);
  EXPECT_TRUE(content.ok()) << content.status();
  return content.ok() ? *std::move(content) : Bytes();
}

// The same edits give the same file, whoever makes them, in turns.
TEST(VdiImages, AreTheSameInBothHands) {
  std::mt19937_64 random(test_seed());
  for (const char* options : {"static=off", "static=on"}) {
    const uint64_t disk_bytes = 9 * kMiB + 512 * (random() % 2000);
    SCOPED_TRACE(absl::StrCat(options, " ", disk_bytes));
    const Scratch ours;
    const Scratch theirs;
    const Scratch mixed;
    for (const Scratch* image : {&ours, &theirs, &mixed})
      ASSERT_TRUE(qemu_create({image->image(), disk_bytes, options, {}}).ok());
    for (int turn = 0; turn < 3; ++turn) {
      const std::vector<Edit> edits = random_edits(random, disk_bytes);
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
      const auto expected = qemu_content(theirs.image());
      ASSERT_TRUE(expected.ok()) << expected.status();
      EXPECT_TRUE(our_content(theirs.image()) == *expected);
      EXPECT_EQ(qemu_check(ours.image()), absl::OkStatus());
      EXPECT_EQ(qemu_compare(ours.image(), theirs.image()), absl::OkStatus());
      expect_same_facts(theirs.path());
      expect_same_facts(ours.path());
    }
  }
}

TEST(VdiImages, AreConvertedToQemusBytes) {
  std::mt19937_64 random(test_seed());
  const Scratch source;
  ASSERT_TRUE(qemu_create({source.image(), 7 * kMiB, "", {}}).ok());
  edit_as_qemu(source.image(), random_edits(random, 7 * kMiB));
  for (const char* options : {"static=off", "static=on"}) {
    const Scratch ours;
    const Scratch theirs;
    for (const Whose whose : kBoth) {
      const Scratch& target = whose == Whose::kOurs ? ours : theirs;
      const SeparateResult result =
          run_program(whose, {"convert", "-f", "vdi", "-O", "vdi", "-o",
                              options, source.path(), target.path()});
      ASSERT_EQ(result.exit_code, 0) << result.errors;
    }
    EXPECT_TRUE(ours.content() == theirs.content());
    EXPECT_EQ(qemu_check(ours.image()), absl::OkStatus());
  }
}

// What VirtualBox leaves where the guest discarded, or zeroed.
TEST(VdiImages, FreeAndZeroedEntriesReadAsInQemu) {
  const Scratch image;
  ASSERT_TRUE(qemu_create({image.image(), 4 * kMiB, "", {}}).ok());
  edit_as_qemu(image.image(), {{0, 3 * kMiB, 7}});
  image.poke(512 + 2 * 4, vdi::kZeroed);
  image.poke(vdi::kAllocatedOffset, 2);
  EXPECT_EQ(qemu_check(image.image()), absl::OkStatus());
  EXPECT_TRUE(our_content(image.image()) == *qemu_content(image.image()));
  expect_same_facts(image.path());
  edit_as_we_do(image.image(), {{2 * kMiB + 512, 512, 9}});
  EXPECT_EQ(qemu_check(image.image()), absl::OkStatus());
  EXPECT_TRUE(our_content(image.image()) == *qemu_content(image.image()));
}

// ---- What is damaged --------------------------------------------------------

TEST(VdiDamage, IsFoundAsQemuFindsIt) {
  struct Poke {
    uint64_t offset;
    uint32_t value;
  };
  const std::vector<Poke> damages[] = {
      {{vdi::kAllocatedOffset, 9}},
      {{vdi::kAllocatedOffset, 0}},
      {{512, 1}},
      {{512, 4}},
      {{512, 0xfffffffd}},
      {{512, vdi::kFree}},
      {{512, vdi::kZeroed}, {vdi::kAllocatedOffset, 2}},
      {{512, 2}, {516, 2}, {vdi::kAllocatedOffset, 3}},
  };
  for (const std::vector<Poke>& damage : damages) {
    const Scratch image;
    ASSERT_TRUE(qemu_create({image.image(), 4 * kMiB, "", {}}).ok());
    edit_as_qemu(image.image(), {{0, 3 * kMiB, 7}});
    for (const Poke& poke : damage) image.poke(poke.offset, poke.value);
    SCOPED_TRACE(absl::StrCat(damage[0].offset, " ", damage[0].value));
    expect_same_output({"check", image.path()});
    expect_same_output({"check", "--output=json", image.path()});
    EXPECT_TRUE(our_content(image.image()) == *qemu_content(image.image()));
  }
}

// What QEMU refuses, we refuse.
TEST(VdiDamage, OfTheHeaderIsRefusedByBoth) {
  struct Poke {
    const char* field;
    uint64_t offset;
    uint32_t value;
  };
  for (const Poke& poke :
       std::vector<Poke>{{"signature", vdi::kSignatureOffset, 0},
                         {"version", vdi::kVersionOffset, 0x10000},
                         {"map offset", vdi::kMapOffsetOffset, 513},
                         {"data offset", vdi::kDataOffsetOffset, 1025},
                         {"sector size", vdi::kSectorSizeOffset, 4096},
                         {"block size", vdi::kBlockSizeOffset, 2 << 20},
                         {"disk size", vdi::kDiskSizeOffset, 5 << 20},
                         {"disk size, high", vdi::kDiskSizeOffset + 4, 1 << 20},
                         {"block count", vdi::kBlockCountOffset, 3},
                         {"block count", vdi::kBlockCountOffset, 0x1fffff81},
                         {"link", vdi::kLinkUuidOffset, 1},
                         {"parent", vdi::kParentUuidOffset, 1}}) {
    const Scratch image;
    ASSERT_TRUE(qemu_create({image.image(), 4 * kMiB, "", {}}).ok());
    image.poke(poke.offset, poke.value);
    SCOPED_TRACE(poke.field);
    for (const Whose whose : kBoth) {
      const SeparateResult result =
          run_program(whose, {"info", "-f", "vdi", image.path()});
      EXPECT_EQ(result.exit_code, 1);
      EXPECT_EQ(result.output, "");
      EXPECT_NE(result.errors.find(
                    absl::StrCat("Could not open '", image.path(), "'")),
                std::string::npos);
    }
  }
}

}  // namespace
}  // namespace spindle::testing

#include "formats/builtin.h"

#include <errno.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/errors.h"
#include "engine/image_opener.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/raw_test_files.h"

namespace spindle {
namespace {

using testing::AlignedMemory;
using testing::pattern;
using testing::ScratchFile;

TEST(BuiltinDrivers, AreListedOnce) {
  const DriverRegistry& registry = builtin_drivers();
  EXPECT_EQ(&registry, &builtin_drivers());
  for (const char* name : {"raw", "qcow2", "vdi", "luks"}) {
    ASSERT_NE(registry.find_format(name), nullptr) << name;
    EXPECT_EQ(registry.find_format(name)->name(), name);
  }
  ASSERT_EQ(registry.protocols.size(), 2u);
  // The file protocol claims everything, so devices are asked first.
  EXPECT_EQ(registry.protocols[0]->name(), "host_device");
  EXPECT_EQ(registry.protocols[1]->name(), "file");
}

// A guest must not turn a disk that was guessed to be raw into a qcow2 image
// that names files of the host (CVE-2008-2004).
TEST(BuiltinDrivers, AGuessedRawImageRefusesAQcow2Header) {
  const ScratchFile disk;
  const ScratchFile qcow2;
  disk.write(pattern(65536, 1));
  ASSERT_TRUE(testing::make_with_qemu({qcow2.path(), "qcow2"}, 1 << 20).ok());
  std::vector<uint8_t> header = qcow2.content();
  header.resize(512);

  ImageOpener::Policy policy;
  policy.probe_image = true;
  const ImageOpener opener(builtin_drivers(), policy);
  {
    const auto guessed = opener.open(disk.path(), "", {});
    ASSERT_TRUE(guessed.ok()) << guessed.status();
    EXPECT_EQ((*guessed)->format_name(), "raw");
    EXPECT_EQ(
        errno_of((*guessed)->write(AlignedMemory(header).qiov(), Sector(0))),
        EPERM);
  }
  EXPECT_EQ(disk.content(), pattern(65536, 1));
  EXPECT_EQ(*opener.probe(disk.path()), "raw");
  {
    const auto stated = opener.open(disk.path(), "raw", {});
    ASSERT_TRUE(stated.ok()) << stated.status();
    EXPECT_TRUE((*stated)->write(AlignedMemory(header).qiov(), Sector(0)).ok());
  }
  EXPECT_EQ(*opener.probe(disk.path()), "qcow2");
}

TEST(BuiltinDrivers, RawImagesAreCreatedAsQemuCreatesThem) {
  const ImageOpener opener(builtin_drivers(), {});
  for (const uint64_t size : {0u, 1000u, 65536u}) {
    const ScratchFile ours;
    const ScratchFile theirs;
    CreateOptions options;
    options.size_bytes = size;
    options.options["preallocation"] = "falloc";
    ASSERT_TRUE(opener.create(ours.path(), "raw", options).ok());
    ASSERT_TRUE(testing::make_with_qemu({theirs.path(), "raw"}, size,
                                        "preallocation=falloc")
                    .ok());
    EXPECT_EQ(ours.content(), theirs.content());
  }
}

}  // namespace
}  // namespace spindle

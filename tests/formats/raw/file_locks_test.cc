#include "formats/raw/file_locks.h"

#include <fcntl.h>

#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/format.h"
#include "formats/raw/file_driver.h"
#include "formats/raw/owned_fd.h"
#include "gtest/gtest.h"
#include "tests/formats/raw/qemu_io_process.h"
#include "tests/formats/raw/raw_test_files.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using testing::flipped;

using testing::locked_bytes;
using testing::QemuIoProcess;
using testing::ScratchFile;

const OpenOptions kWriter{};
const OpenOptions kReader = flipped({&OpenOptions::read_only});
const OpenOptions kForcedReader =
    flipped({&OpenOptions::read_only, &OpenOptions::force_share});

class FileLocks : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(
        testing::make_with_qemu({image_.path(), "qcow2"}, 1 << 20).ok());
  }

  OwnedFd open_description() const {
    return OwnedFd(::open(image_.path().c_str(), O_RDWR | O_CLOEXEC));
  }
  // QEMU, with the image opened as `format`.
  std::vector<std::string> qemu(std::vector<std::string> flags,
                                const std::string& format) const {
    flags.insert(flags.end(), {"-f", format, image_.path()});
    return flags;
  }
  absl::Status try_open(const OpenOptions& options) const {
    return FileDriver::open(image_.path(), options).status();
  }
  std::string question() const {
    return absl::StrCat("Is another process using the image [", image_.path(),
                        "]?");
  }

  ScratchFile image_;
};

TEST_F(FileLocks, TheLockedBytesAreThoseThatQemuLocks) {
  struct Case {
    const char* name;
    OpenOptions ours;
    std::vector<std::string> flags;
  };
  for (const Case& c :
       {Case{"writer", kWriter, {}}, Case{"reader", kReader, {"-r"}},
        Case{"forced reader", kForcedReader, {"-r", "-U"}}}) {
    std::set<int> by_qemu;
    {
      const QemuIoProcess process(qemu(c.flags, "qcow2"));
      ASSERT_TRUE(process.has_opened()) << process.output();
      by_qemu = locked_bytes(image_.path());
    }
    const auto driver = FileDriver::open(image_.path(), c.ours);
    ASSERT_TRUE(driver.ok()) << driver.status();
    EXPECT_EQ(locked_bytes(image_.path()), by_qemu) << c.name;
    EXPECT_FALSE(by_qemu.empty()) << c.name;
  }
  EXPECT_TRUE(locked_bytes(image_.path()).empty());
}

TEST_F(FileLocks, QemuRespectsOurWriter) {
  const auto driver = FileDriver::open(image_.path(), kWriter);
  ASSERT_TRUE(driver.ok()) << driver.status();
  for (const char* format : {"raw", "qcow2"}) {
    const QemuIoProcess writer(qemu({}, format));
    EXPECT_FALSE(writer.has_opened()) << format;
    EXPECT_TRUE(
        absl::StrContains(writer.output(), "Failed to get \"write\" lock"))
        << writer.output();
  }
  const QemuIoProcess reader(qemu({"-r"}, "qcow2"));
  EXPECT_FALSE(reader.has_opened());
  EXPECT_TRUE(
      absl::StrContains(reader.output(), "Failed to get shared \"write\" lock"))
      << reader.output();
  const QemuIoProcess forced(qemu({"-r", "-U"}, "qcow2"));
  EXPECT_TRUE(forced.has_opened()) << forced.output();
}

TEST_F(FileLocks, WeRespectQemusWriter) {
  const QemuIoProcess process(qemu({}, "qcow2"));
  ASSERT_TRUE(process.has_opened()) << process.output();
  const absl::Status writer = try_open(kWriter);
  EXPECT_TRUE(absl::IsUnavailable(writer)) << writer;
  EXPECT_EQ(writer.message(),
            absl::StrCat("Failed to get \"write\" lock\n", question()));
  const absl::Status reader = try_open(kReader);
  EXPECT_EQ(reader.message(),
            absl::StrCat("Failed to get shared \"write\" lock\n", question()));
  EXPECT_TRUE(try_open(kForcedReader).ok());
  EXPECT_TRUE(try_open(flipped({&OpenOptions::lock})).ok());
}

TEST_F(FileLocks, WeRespectQemusRawWriterThatSharesEverything) {
  const QemuIoProcess process(qemu({}, "raw"));
  ASSERT_TRUE(process.has_opened()) << process.output();
  EXPECT_TRUE(absl::StrContains(try_open(kWriter).message(),
                                "Failed to get shared \"write\" lock"));
  EXPECT_FALSE(try_open(kReader).ok());
  EXPECT_TRUE(try_open(kForcedReader).ok());
}

TEST_F(FileLocks, ReadersShareWithQemusReaders) {
  {
    const QemuIoProcess process(qemu({"-r"}, "qcow2"));
    ASSERT_TRUE(process.has_opened()) << process.output();
    EXPECT_TRUE(try_open(kReader).ok());
    EXPECT_TRUE(absl::StrContains(try_open(kWriter).message(),
                                  "Failed to get \"write\" lock"));
  }
  const auto driver = FileDriver::open(image_.path(), kReader);
  ASSERT_TRUE(driver.ok()) << driver.status();
  const QemuIoProcess reader(qemu({"-r"}, "qcow2"));
  EXPECT_TRUE(reader.has_opened()) << reader.output();
  const QemuIoProcess writer(qemu({}, "qcow2"));
  EXPECT_FALSE(writer.has_opened());
}

TEST_F(FileLocks, ABackingFileThatQemuReadsCanBeOursToo) {
  const ScratchFile overlay;
  testing::QemuCreate create;
  create.image = {overlay.path(), "qcow2"};
  create.size_bytes = 1 << 20;
  create.backing = testing::ImageFile{image_.path(), "qcow2"};
  ASSERT_TRUE(testing::qemu_create(create).ok());
  const QemuIoProcess process({"-f", "qcow2", overlay.path()});
  ASSERT_TRUE(process.has_opened()) << process.output();
  EXPECT_TRUE(try_open(kReader).ok());
  EXPECT_FALSE(try_open(kWriter).ok());
}

TEST_F(FileLocks, TwoWritersInOneProcessExcludeEachOther) {
  const auto first = FileDriver::open(image_.path(), kWriter);
  ASSERT_TRUE(first.ok());
  EXPECT_FALSE(try_open(kWriter).ok());
  ASSERT_TRUE((*first)->close().ok());
  EXPECT_TRUE(try_open(kWriter).ok());
}

TEST_F(FileLocks, AConflictLeavesTheLocksAsTheyWere) {
  const OwnedFd writer = open_description();
  ASSERT_TRUE(change_file_locks(writer.get(), kNoUse, kWriterUse, "w").ok());
  const OwnedFd other = open_description();
  ASSERT_TRUE(
      change_file_locks(other.get(), kNoUse, kForcedReaderUse, "o").ok());
  const std::set<int> before = locked_bytes(image_.path());
  EXPECT_FALSE(
      change_file_locks(other.get(), kForcedReaderUse, kWriterUse, "o").ok());
  // Only `other` may have lost something: look at what it alone holds.
  EXPECT_EQ(locked_bytes(image_.path()), before);
  ASSERT_TRUE(change_file_locks(writer.get(), kWriterUse, kNoUse, "w").ok());
  EXPECT_EQ(locked_bytes(image_.path()), (std::set<int>{100}));
}

TEST_F(FileLocks, EveryPermissionIsCheckedByItsOwnByte) {
  const char* const names[] = {"consistent read", "write", "write unchanged",
                               "resize"};
  for (int i = 0; i < kFilePermissionCount; ++i) {
    const auto permission = static_cast<FilePermission>(i);
    const OwnedFd user = open_description();
    const OwnedFd denier = open_description();
    const FileUse using_it{{permission}, {}};
    const FileUse denying_it{{}, {permission}};
    ASSERT_TRUE(set_file_locks(user.get(), using_it, "u").ok());
    EXPECT_EQ(locked_bytes(image_.path()), (std::set<int>{100 + i}));
    EXPECT_TRUE(check_file_locks(denier.get(), using_it, "d").ok());
    EXPECT_EQ(check_file_locks(denier.get(), denying_it, "d").message(),
              absl::StrCat("Failed to get shared \"", names[i],
                           "\" lock\nIs another process using the image [d]?"));
    ASSERT_TRUE(set_file_locks(user.get(), denying_it, "u").ok());
    EXPECT_EQ(locked_bytes(image_.path()), (std::set<int>{200 + i}));
    EXPECT_EQ(check_file_locks(denier.get(), using_it, "d").message(),
              absl::StrCat("Failed to get \"", names[i],
                           "\" lock\nIs another process using the image [d]?"));
    EXPECT_TRUE(check_file_locks(denier.get(), denying_it, "d").ok());
  }
}

}  // namespace
}  // namespace spindle

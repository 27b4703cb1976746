// Images with subclusters, beside QEMU: both do the same, one step at a time,
// and every table entry with its bitmap is the same.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/byte_order.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "engine/snapshot.h"
#include "formats/builtin.h"
#include "formats/qcow2/layout.h"
#include "tests/differential/our_image.h"
#include "tests/support/model_disk.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

using Bytes = std::vector<uint8_t>;

struct Variant {
  const char* name;
  uint64_t cluster_bytes;
  const char* options;
  // Empty: none.
  const char* backing_format;
  bool data_file = false;
};

// One step of a history.
struct Step {
  enum class Kind {
    kWrite,
    kZero,
    kZeroUnmap,
    kDiscard,
    kCompress,
    kCreate,
    kApply,
    kDelete
  };
  Kind kind = Kind::kWrite;
  ByteRange range;
  uint8_t fill = 0;
  std::string snapshot;

  std::string text() const {
    const std::string where = absl::StrCat(range.offset, " ", range.length);
    switch (kind) {
      case Kind::kWrite:
        return absl::StrCat("write -P ", fill, " ", where);
      case Kind::kZero:
        return absl::StrCat("write -z ", where);
      case Kind::kZeroUnmap:
        return absl::StrCat("write -z -u ", where);
      case Kind::kDiscard:
        return absl::StrCat("discard ", where);
      case Kind::kCompress:
        return absl::StrCat("write -c -P ", fill, " ", where);
      case Kind::kCreate:
        return absl::StrCat("-c ", snapshot);
      case Kind::kApply:
        return absl::StrCat("-a ", snapshot);
      case Kind::kDelete:
        return absl::StrCat("-d ", snapshot);
    }
    return {};
  }
  bool is_of_snapshots() const { return kind >= Kind::kCreate; }
};

absl::Status step_by_qemu(const ImageFile& image, const Step& step) {
  if (!step.is_of_snapshots()) return qemu_io(image, {step.text()});
  return run_tool_ok({"qemu-img", "snapshot", step.text().substr(0, 2),
                      step.snapshot, image.path})
      .status();
}

absl::Status snapshot_by_us(const ImageFile& image, const Step& step) {
  OpenOptions options;
  options.driver_options = {{"reuse", "lowest"}};
  const ImageOpener opener(builtin_drivers(), {});
  auto driver = opener.open(image.path, image.format, options);
  if (!driver.ok()) return driver.status();
  absl::Status status;
  if (step.kind == Step::Kind::kCreate) {
    SnapshotInfo wanted;
    wanted.name = step.snapshot;
    wanted.date_seconds = 1;
    status = (*driver)->create_snapshot(wanted).status();
  } else if (step.kind == Step::Kind::kApply) {
    status = (*driver)->apply_snapshot(step.snapshot);
  } else {
    status = (*driver)->delete_snapshot(step.snapshot);
  }
  status.Update((*driver)->close());
  return status;
}

absl::Status step_by_us(const ImageFile& image, const Step& step) {
  if (step.is_of_snapshots()) return snapshot_by_us(image, step);
  auto device = open_ours(image, /*read_only=*/false, {{"reuse", "lowest"}});
  if (!device.ok()) return device.status();
  BlockDevice& disk = **device;
  absl::Status status;
  switch (step.kind) {
    case Step::Kind::kWrite:
    case Step::Kind::kCompress: {
      Bytes bytes(step.range.length, step.fill);
      const IoVector qiov(bytes.data(), bytes.size());
      status = step.kind == Step::Kind::kWrite
                   ? disk.pwrite(qiov, step.range.offset)
                   : disk.write_compressed(
                         qiov, Sector::from_byte_offset(step.range.offset));
      break;
    }
    case Step::Kind::kZero:
    case Step::Kind::kZeroUnmap:
      status = disk.write_zeroes(
          step.range, {.may_unmap = step.kind == Step::Kind::kZeroUnmap,
                       .no_fallback = false});
      break;
    case Step::Kind::kDiscard:
      status = disk.discard(step.range);
      break;
    default:
      status = absl::InternalError("not a step of data");
  }
  status.Update(disk.close());
  return status;
}

// Every entry of the active tables that is not empty, as text.
std::string tables_of(const ImageFile& image) {
  const absl::StatusOr<Bytes> file = read_file(image.path);
  if (!file.ok()) return file.status().ToString();
  const auto at = [&](uint64_t offset) {
    return offset + 8 <= file->size() ? load_big64(&(*file)[offset]) : 0;
  };
  const uint64_t cluster_bytes =
      uint64_t{1} << load_big32(&(*file)[qcow2::kClusterBitsOffset]);
  const uint64_t l1 = at(qcow2::kL1TableOffsetOffset);
  std::string text;
  for (uint32_t i = 0; i < load_big32(&(*file)[qcow2::kL1SizeOffset]); ++i) {
    const uint64_t table = at(l1 + i * qcow2::kL1EntryBytes);
    if (table == 0) continue;
    absl::StrAppendFormat(&text, "L1 %d: %x\n", i, table);
    for (uint64_t j = 0; j < cluster_bytes; j += qcow2::kExtendedL2EntryBytes) {
      const uint64_t entry = at((table & qcow2::kL1OffsetMask) + j);
      const uint64_t bitmap = at((table & qcow2::kL1OffsetMask) + j + 8);
      if (entry == 0 && bitmap == 0) continue;
      absl::StrAppendFormat(&text, "  %d: %x %x\n",
                            j / qcow2::kExtendedL2EntryBytes, entry, bitmap);
    }
  }
  return text;
}

class History {
 public:
  History(uint64_t cluster_bytes, uint64_t disk_bytes, uint64_t seed)
      : cluster_bytes_(cluster_bytes), disk_bytes_(disk_bytes), random_(seed) {}

  Step next() {
    const uint64_t dice = random_() % 40;
    if (dice < 3 && names_.size() < 3) {
      names_.push_back(absl::StrCat("s", ++made_));
      return {Step::Kind::kCreate, {}, 0, names_.back()};
    }
    if (dice < 5 && !names_.empty()) {
      return {Step::Kind::kApply, {}, 0, any_name()};
    }
    if (dice < 7 && !names_.empty()) {
      const std::string name = any_name();
      std::erase(names_, name);
      return {Step::Kind::kDelete, {}, 0, name};
    }
    const auto fill = static_cast<uint8_t>(random_() % 255 + 1);
    if (dice < 11) {
      const uint64_t first =
          random_() % (disk_bytes_ / cluster_bytes_) * cluster_bytes_;
      return {Step::Kind::kCompress, {first, cluster_bytes_}, fill, ""};
    }
    static constexpr Step::Kind kKinds[] = {
        Step::Kind::kWrite, Step::Kind::kWrite,     Step::Kind::kWrite,
        Step::Kind::kZero,  Step::Kind::kZeroUnmap, Step::Kind::kDiscard};
    return {kKinds[random_() % std::size(kKinds)], range(), fill, ""};
  }

 private:
  // Of sectors, subclusters or clusters, at either end.
  ByteRange range() {
    const uint64_t units[] = {512, cluster_bytes_ / 32, cluster_bytes_ / 32,
                              cluster_bytes_};
    const uint64_t unit = units[random_() % 4];
    const uint64_t length_unit = units[random_() % 4];
    const uint64_t most =
        length_unit == cluster_bytes_ ? 3 : 1 + random_() % 40;
    const uint64_t offset = random_() % (disk_bytes_ / unit) * unit;
    const uint64_t length = (1 + random_() % most) * length_unit;
    // Often up to the very end.
    const bool to_end = random_() % 6 == 0;
    return {offset, to_end ? disk_bytes_ - offset
                           : std::min(length, disk_bytes_ - offset)};
  }
  std::string any_name() { return names_[random_() % names_.size()]; }

  const uint64_t cluster_bytes_;
  const uint64_t disk_bytes_;
  std::mt19937_64 random_;
  std::vector<std::string> names_;
  int made_ = 0;
};

class SubclusterHistories : public ::testing::TestWithParam<Variant> {
 protected:
  ~SubclusterHistories() override {
    for (const ImageFile& image : {ours_, theirs_, backing_}) {
      ::unlink(image.path.c_str());
      ::unlink((image.path + ".data").c_str());
    }
  }

  // An end in the middle of a subcluster.
  uint64_t disk_bytes() const { return 7 * GetParam().cluster_bytes + 1536; }

  void make_images() {
    const Variant& variant = GetParam();
    if (*variant.backing_format != '\0') {
      // It ends in the middle of the disk, and has a hole.
      Bytes bytes(disk_bytes() / 2 / 512 * 512);
      stamp_content(1, 0, absl::MakeSpan(bytes));
      std::fill_n(bytes.begin() + bytes.size() / 3, bytes.size() / 4, 0);
      ASSERT_TRUE(write_file(backing_.path, bytes).ok());
    }
    for (const ImageFile& image : {ours_, theirs_}) {
      QemuCreate create{
          .image = image,
          .size_bytes = disk_bytes(),
          .options = absl::StrCat("extended_l2=on,cluster_size=",
                                  variant.cluster_bytes, variant.options),
          .backing = {}};
      if (variant.data_file)
        absl::StrAppend(&create.options, ",data_file=", image.path, ".data");
      if (*variant.backing_format != '\0') create.backing = backing_;
      ASSERT_TRUE(qemu_create(create).ok());
    }
  }

  void expect_same_images() {
    const absl::Status clean = qemu_check(ours_);
    EXPECT_TRUE(clean.ok()) << clean;
    const absl::Status same = qemu_compare(ours_, theirs_);
    EXPECT_TRUE(same.ok()) << same;
    EXPECT_EQ(tables_of(ours_), tables_of(theirs_));
    const auto our_map = qemu_map(ours_);
    const auto their_map = qemu_map(theirs_);
    ASSERT_TRUE(our_map.ok() && their_map.ok());
    EXPECT_EQ(placement(*our_map), placement(*their_map));
  }

  // We read QEMU's image as QEMU does, and say where it lies as QEMU says.
  void expect_read_alike() {
    auto device = open_ours(theirs_, /*read_only=*/true);
    ASSERT_TRUE(device.ok()) << device.status();
    const auto by_us = read_everything(**device);
    const auto by_qemu = qemu_content(theirs_);
    ASSERT_TRUE(by_us.ok() && by_qemu.ok());
    EXPECT_TRUE(*by_us == *by_qemu);
    const auto their_map = qemu_map(theirs_);
    ASSERT_TRUE(their_map.ok());
    std::vector<MapEntry> map;
    for (uint64_t at = 0; at < disk_bytes();) {
      const auto status = (*device)->block_status({at, disk_bytes() - at});
      ASSERT_TRUE(status.ok()) << status.status();
      MapEntry entry;
      entry.start = at;
      entry.length = status->length;
      entry.depth = static_cast<int>(status->depth);
      entry.data = status->data;
      entry.zero = status->zero;
      entry.offset = status->host_offset;
      map.push_back(entry);
      at += status->length;
    }
    EXPECT_EQ(placement(map), placement(*their_map));
    ASSERT_TRUE((*device)->close().ok());
  }

  const ImageFile ours_{tmpfs_path("ours"), "qcow2"};
  const ImageFile theirs_{tmpfs_path("theirs"), "qcow2"};
  const ImageFile backing_{tmpfs_path("backing"), "raw"};
};

TEST_P(SubclusterHistories, AreQemus) {
  make_images();
  History history(GetParam().cluster_bytes, disk_bytes(), test_seed());
  std::string story;
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    const Step step = history.next();
    // An external data file holds nothing compressed.
    if (GetParam().data_file && step.kind == Step::Kind::kCompress) continue;
    const std::string tables = tables_of(ours_);
    const absl::Status by_qemu = step_by_qemu(theirs_, step);
    if (step.kind == Step::Kind::kCompress && !by_qemu.ok()) {
      // QEMU compresses nothing into a cluster that holds data already, but may
      // have copied its table by then.
      ASSERT_TRUE(run_tool_ok({"cp", theirs_.path, ours_.path}).ok());
      continue;
    }
    absl::StrAppend(&story, step.text(), "\n");
    SCOPED_TRACE(absl::StrCat("after\n", story, "from\n", tables));
    const absl::Status by_us = step_by_us(ours_, step);
    EXPECT_EQ(by_us.ok(), by_qemu.ok()) << by_us << "\n" << by_qemu;
    expect_same_images();
    if (i % 4 == 3) expect_read_alike();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Variants, SubclusterHistories,
    ::testing::Values(
        Variant{"small", 16384, "", ""},
        Variant{"small_backed", 16384, "", "raw"},
        Variant{"small_zstd", 16384, ",compression_type=zstd", "raw"},
        Variant{"usual", 65536, "", ""},
        Variant{"usual_backed", 65536, "", "raw"},
        Variant{"usual_preallocated", 65536, ",preallocation=metadata", "raw"},
        Variant{"data_file", 16384, "", "", true},
        Variant{"data_file_backed", 65536, "", "raw", true},
        Variant{"large", 2 << 20, "", ""},
        Variant{"large_backed", 2 << 20, "", "raw"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace spindle::testing

// QEMU writes and we read; we write and QEMU checks and compares; both do the
// same, one request at a time, and clusters must lie at the same places.

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "tests/differential/edits.h"
#include "tests/differential/geometry.h"
#include "tests/differential/our_image.h"
#include "tests/support/model_disk.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

#define ASSERT_STATUS_OK(expression)                \
  do {                                              \
    const absl::Status status_of_it = (expression); \
    ASSERT_TRUE(status_of_it.ok()) << status_of_it; \
  } while (false)

namespace spindle::testing {
namespace {

using Bytes = std::vector<uint8_t>;

// The images of one test: the one under test, its twin, and what is below them.
class DifferentialTest : public ::testing::TestWithParam<Geometry> {
 protected:
  void SetUp() override {
    const Geometry& geometry = GetParam();
    random_.seed(test_seed());
    if (geometry.backing != Geometry::Backing::kNone) {
      ASSERT_STATUS_OK(make_backing());
    }
    image_.passphrase = twin_.passphrase = geometry.passphrase();
    for (const ImageFile& image : {image_, twin_})
      ASSERT_STATUS_OK(create(image));
  }

  void TearDown() override {
    for (const ImageFile& image : {image_, twin_, backing_, flat_})
      remove(image);
  }

  static void remove(const ImageFile& image) {
    ::unlink(image.path.c_str());
    ::unlink(Geometry::data_file_of(image.path).c_str());
  }

  absl::Status make_backing() {
    using Backing = Geometry::Backing;
    const Backing kind = GetParam().backing;
    const bool raw = kind == Backing::kShortRaw || kind == Backing::kLongRaw;
    Bytes bytes(GetParam().backing_bytes());
    stamp_content(42, 0, absl::MakeSpan(bytes));
    // A hole, so that the backing file has unallocated clusters as well.
    std::fill_n(bytes.begin() + bytes.size() / 3, bytes.size() / 4, 0);
    if (raw) return write_file(backing_.path, bytes);
    backing_.format = "qcow2";
    absl::Status status = write_file(flat_.path, bytes);
    if (!status.ok()) return status;
    const bool compressed = kind == Backing::kCompressedQcow2;
    return qemu_convert(flat_, backing_, "cluster_size=4k",
                        compressed ? std::vector<std::string>{"-c"}
                                   : std::vector<std::string>{});
  }

  absl::Status create(const ImageFile& image) const {
    const Geometry& geometry = GetParam();
    QemuCreate create{.image = image,
                      .size_bytes = geometry.length_bytes(),
                      .options = geometry.create_options(image.path),
                      .backing = std::nullopt};
    if (geometry.backing != Geometry::Backing::kNone) create.backing = backing_;
    if (geometry.encryption != "luks") return qemu_create(create);
    // qemu-img gives up where a short measurement finds no processor time used;
    // encryption_judges_test has images that it made.
    CreateOptions ours;
    ours.size_bytes = create.size_bytes;
    if (create.backing.has_value()) {
      ours.backing_filename = create.backing->path;
      ours.backing_format = create.backing->format;
    }
    for (const absl::string_view option : absl::StrSplit(create.options, ',')) {
      const std::vector<std::string> parts = absl::StrSplit(option, '=');
      ours.options[parts[0]] = parts[1];
    }
    return create_ours(image, std::move(ours));
  }

  // Where QEMU sees clusters.  Of an encrypted image it does not say where they
  // lie: of one with the same tables that is not called encrypted, it does.
  absl::StatusOr<std::vector<MapEntry>> map_of(const ImageFile& image) const {
    if (image.passphrase.empty()) return qemu_map(image);
    auto bytes = read_file(image.path);
    if (!bytes.ok()) return bytes.status();
    constexpr size_t kCryptMethod = 32;
    std::fill_n(bytes->begin() + kCryptMethod, 4, uint8_t{0});
    constexpr uint8_t kExtension[] = {0x05, 0x37, 0xbe, 0x77};
    const auto extension = std::search(bytes->begin(), bytes->begin() + 512,
                                       kExtension, std::end(kExtension));
    if (GetParam().encryption == "luks") *extension = 0x7f;
    const ImageFile plain{temporary_path("plain"), image.format};
    absl::Status status = write_file(plain.path, *bytes);
    if (!status.ok()) return status;
    auto map = qemu_map(plain);
    ::unlink(plain.path.c_str());
    return map;
  }

  std::vector<Edit> choose(size_t count) {
    return choose_edits(random_, {.length_bytes = GetParam().length_bytes(),
                                  .cluster_bytes = GetParam().cluster_bytes,
                                  .count = count});
  }

  // Of clusters that are not used yet; empty if this geometry has none.
  std::vector<Edit> choose_first_compressed() {
    if (GetParam().compression == "none") return {};
    return choose_compressed(random_,
                             {.length_bytes = GetParam().length_bytes(),
                              .cluster_bytes = GetParam().cluster_bytes,
                              .count = 8});
  }

  // What we read is what QEMU reads.
  void expect_same_content(const ImageFile& image, Bytes* content) {
    const auto theirs = qemu_content(image);
    ASSERT_TRUE(theirs.ok()) << theirs.status();
    auto device = open_ours(image, /*read_only=*/true);
    ASSERT_TRUE(device.ok()) << device.status();
    const auto ours = read_everything(**device);
    ASSERT_TRUE(ours.ok()) << ours.status();
    ASSERT_EQ(ours->size(), theirs->size());
    const auto [a, b] =
        std::mismatch(ours->begin(), ours->end(), theirs->begin());
    ASSERT_TRUE(a == ours->end())
        << "byte " << a - ours->begin() << " is " << int{*a} << " for us, "
        << int{*b} << " for QEMU";
    ASSERT_STATUS_OK((*device)->close());
    if (content != nullptr) *content = *theirs;
  }

  // We edit an image that holds `before`; QEMU must find it clean and right.
  void edit_and_let_qemu_judge(const ImageFile& image, const Bytes& before,
                               size_t count, const std::string& reuse) {
    ModelDisk::Options options{
        .length_bytes = before.size(), .initial = {}, .backing = {}};
    options.initial = [&](uint64_t offset, absl::Span<uint8_t> out) {
      const size_t length =
          std::min<size_t>(out.size(), before.size() - offset);
      std::copy_n(before.begin() + static_cast<ptrdiff_t>(offset), length,
                  out.begin());
    };
    const ContentFunction backing = [](uint64_t offset,
                                       absl::Span<uint8_t> out) {
      stamp_content(42, offset, out);
    };
    // In version 2 a discarded cluster shows what is below.
    if (GetParam().compat == "0.10") options.backing = backing;
    ModelDisk model(options);
    auto device = open_ours(image, /*read_only=*/false, {{"reuse", reuse}});
    ASSERT_TRUE(device.ok()) << device.status();
    const EditChoice choice{.length_bytes = GetParam().length_bytes(),
                            .cluster_bytes = GetParam().cluster_bytes,
                            .count = count,
                            .compress = GetParam().compression != "none"};
    for (const Edit& edit : choose_edits(random_, choice)) {
      const absl::Status status = apply(edit, **device, model);
      ASSERT_TRUE(status.ok()) << qemu_io_command(edit) << ": " << status;
    }
    const auto content = read_everything(**device);
    ASSERT_TRUE(content.ok()) << content.status();
    const auto mismatch =
        model.end_read(model.begin_read({0, content->size()}), *content);
    ASSERT_FALSE(mismatch.has_value())
        << "byte " << mismatch->offset << " is " << int{mismatch->found} << ": "
        << mismatch->explanation;
    ASSERT_STATUS_OK((*device)->close());
    device->reset();
    ASSERT_STATUS_OK(qemu_check(image));
    ASSERT_STATUS_OK(write_file(flat_.path, *content));
    ASSERT_STATUS_OK(qemu_compare(image, flat_));
    if (GetParam().data_file == Geometry::DataFile::kRaw &&
        image.passphrase.empty()) {
      // It consists of whole clusters.
      const auto data = read_file(Geometry::data_file_of(image.path));
      ASSERT_TRUE(data.ok() && data->size() >= content->size());
      EXPECT_TRUE(std::equal(content->begin(), content->end(), data->begin()));
    }
  }

  // Makes both images anew, QEMU edits one and we the other; tells in
  // `difference` where clusters lie at different places, empty if nowhere.
  absl::Status compare_placement(const std::vector<Edit>& edits,
                                 std::string* difference) {
    for (const ImageFile& image : {image_, twin_}) {
      remove(image);
      const absl::Status status = create(image);
      if (!status.ok()) return status;
    }
    absl::Status status = qemu_io(image_, qemu_io_commands(edits));
    auto device = open_ours(twin_, /*read_only=*/false, {{"reuse", "lowest"}});
    if (!device.ok()) return device.status();
    for (const Edit& edit : edits) status.Update(apply(edit, **device));
    status.Update((*device)->close());
    device->reset();
    status.Update(qemu_check(twin_));
    // Each has a key, and so a noise, of its own.
    if (!GetParam().has_noise()) status.Update(qemu_compare(image_, twin_));
    if (!status.ok()) return status;
    const auto their_map = map_of(image_);
    const auto our_map = map_of(twin_);
    if (!their_map.ok() || !our_map.ok()) {
      return absl::InternalError("qemu-img map failed");
    }
    const std::vector<MapEntry> theirs = placement(*their_map);
    const std::vector<MapEntry> ours = placement(*our_map);
    if (ours == theirs) return absl::OkStatus();
    *difference = "ours    |    QEMU's";
    for (size_t i = 0; i < std::max(ours.size(), theirs.size()); ++i) {
      *difference += "\n  " + (i < ours.size() ? to_string(ours[i]) : "-") +
                     "    |    " +
                     (i < theirs.size() ? to_string(theirs[i]) : "-");
    }
    return absl::OkStatus();
  }

  std::mt19937_64 random_;
  ImageFile image_{temporary_path("image"), "qcow2"};
  ImageFile twin_{temporary_path("twin"), "qcow2"};
  const ImageFile flat_{temporary_path("flat"), "raw"};
  ImageFile backing_{temporary_path("backing"), "raw"};
};

TEST_P(DifferentialTest, EachReadsWhatTheOtherWrote) {
  Bytes content;
  expect_same_content(image_, &content);
  if (HasFatalFailure()) return;
  ASSERT_STATUS_OK(
      qemu_io(image_, qemu_io_commands(choose_first_compressed())));
  ASSERT_STATUS_OK(qemu_io(image_, qemu_io_commands(choose(25))));
  expect_same_content(image_, &content);
  if (HasFatalFailure()) return;
  edit_and_let_qemu_judge(image_, content, 25, "lowest");
  if (HasFatalFailure()) return;
  ASSERT_STATUS_OK(qemu_io(image_, qemu_io_commands(choose(25))));
  ASSERT_STATUS_OK(qemu_check(image_));
  expect_same_content(image_, &content);
  if (HasFatalFailure()) return;
  edit_and_let_qemu_judge(image_, content, 25, "lazy");
}

TEST_P(DifferentialTest, SameEditsAllocateTheSameClusters) {
  std::vector<Edit> edits = choose_first_compressed();
  for (const Edit& edit : choose(30)) edits.push_back(edit);
  std::string difference;
  ASSERT_STATUS_OK(compare_placement(edits, &difference));
  if (difference.empty()) return;
  // The fewest edits that show it make the best report.
  for (size_t i = edits.size(); i-- > 0;) {
    std::vector<Edit> fewer = edits;
    fewer.erase(fewer.begin() + static_cast<ptrdiff_t>(i));
    std::string smaller_difference;
    ASSERT_STATUS_OK(compare_placement(fewer, &smaller_difference));
    if (smaller_difference.empty()) continue;
    edits = std::move(fewer);
    difference = std::move(smaller_difference);
  }
  std::string story;
  for (const Edit& edit : edits) story += "\n  " + qemu_io_command(edit);
  ADD_FAILURE() << difference << "\nafter" << story;
}

#ifdef SPINDLE_FULL_PRODUCT
const std::vector<Geometry> kGeometries = all_geometries();
#else
const std::vector<Geometry> kGeometries = pairwise_geometries();
#endif

INSTANTIATE_TEST_SUITE_P(Geometries, DifferentialTest,
                         ::testing::ValuesIn(kGeometries),
                         [](const auto& info) { return info.param.name(); });

// Images that qemu-img compressed, without a backing file.
class CompressedTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(CompressedTest, IsReadAndOverwritten) {
  const uint64_t cluster_bytes = GetParam();
  std::mt19937_64 random(test_seed());
  // Text-like data that shrinks, data that does not, and zeroes.
  Bytes bytes(std::max<uint64_t>(256 << 10, 6 * cluster_bytes) + 1536);
  for (size_t i = 0; i < bytes.size(); ++i) {
    const size_t kind = i / (cluster_bytes * 3 / 2) % 3;
    bytes[i] = kind == 0 ? static_cast<uint8_t>("spindle"[i % 7] + i / 1000 % 5)
               : kind == 1 ? static_cast<uint8_t>(random())
                           : 0;
  }
  const ImageFile raw{temporary_path("source"), "raw"};
  const ImageFile image{temporary_path("compressed"), "qcow2"};
  ASSERT_STATUS_OK(write_file(raw.path, bytes));
  ASSERT_STATUS_OK(qemu_convert(
      raw, image, "cluster_size=" + std::to_string(cluster_bytes), {"-c"}));
  {
    auto device = open_ours(image, /*read_only=*/true);
    ASSERT_TRUE(device.ok()) << device.status();
    const auto content = read_everything(**device);
    ASSERT_TRUE(content.ok()) << content.status();
    EXPECT_TRUE(*content == bytes);
    ASSERT_STATUS_OK((*device)->close());
  }
  ModelDisk model(
      {.length_bytes = bytes.size(),
       .initial =
           [&](uint64_t offset, absl::Span<uint8_t> out) {
             const size_t length =
                 std::min<size_t>(out.size(), bytes.size() - offset);
             std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(offset), length,
                         out.begin());
           },
       .backing = {}});
  auto device = open_ours(image, /*read_only=*/false);
  ASSERT_TRUE(device.ok()) << device.status();
  for (const Edit& edit : choose_edits(random, {.length_bytes = bytes.size(),
                                                .cluster_bytes = cluster_bytes,
                                                .count = 30})) {
    ASSERT_STATUS_OK(apply(edit, **device, model));
  }
  const auto content = read_everything(**device);
  ASSERT_TRUE(content.ok()) << content.status();
  const auto mismatch =
      model.end_read(model.begin_read({0, bytes.size()}), *content);
  EXPECT_FALSE(mismatch.has_value()) << mismatch->explanation;
  ASSERT_STATUS_OK((*device)->close());
  device->reset();
  ASSERT_STATUS_OK(qemu_check(image));
  ASSERT_STATUS_OK(write_file(raw.path, *content));
  EXPECT_TRUE(qemu_compare(image, raw).ok());
}

INSTANTIATE_TEST_SUITE_P(ClusterSizes, CompressedTest,
                         ::testing::Values(512, 1024, 2048, 4096, 8192, 16384,
                                           32768, 65536, 131072, 262144, 524288,
                                           1048576, 2097152));

}  // namespace
}  // namespace spindle::testing

#include "tests/fuzz/template_image.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "formats/qcow2/qcow2_format.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/fuzz_file.h"

namespace spindle::testing {
namespace {

// Two L2 tables' worth.
constexpr uint64_t kSizeBytes =
    2 * (kTemplateClusterBytes / 8) * kTemplateClusterBytes;

void must(const absl::Status& status) {
  require(status.ok(), absl::StrCat("the template: ", status.ToString()));
}

TemplateImage make() {
  const auto file = std::make_shared<FuzzFile>("");
  CreateOptions create;
  create.size_bytes = kSizeBytes;
  create.options["cluster_size"] = absl::StrCat(kTemplateClusterBytes);
  const ImageFormat& format = *qcow2::qcow2_format();
  must(format.create(file, create, {}));
  const auto driver = format.open(file, {}, {});
  must(driver.status());
  const auto write = [&](uint64_t cluster, bool compressed) {
    std::vector<uint8_t> data(kTemplateClusterBytes,
                              static_cast<uint8_t>(cluster + 1));
    const IoVector qiov(data.data(), data.size());
    const Sector sector =
        Sector::from_byte_offset(cluster * kTemplateClusterBytes);
    must(compressed ? (*driver)->write_compressed(qiov, sector)
                    : (*driver)->write(qiov, sector));
  };
  for (const uint64_t cluster : {0, 1, 2, 9, 70}) write(cluster, false);
  write(5, true);
  SnapshotInfo snapshot;
  snapshot.name = "first";
  must((*driver)->create_snapshot(snapshot).status());
  write(1, false);
  write(6, true);
  must((*driver)->write_zeroes(
      {9 * kTemplateClusterBytes, kTemplateClusterBytes}, {}));
  must((*driver)->close());

  TemplateImage image;
  image.file = file->content();
  const absl::StatusOr<qcow2::Header> header = qcow2::parse_header(
      absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(image.file.data()),
                          kTemplateClusterBytes),
      image.file.size());
  must(header.status());
  image.header = *header;
  return image;
}

}  // namespace

const TemplateImage& template_image() {
  static const TemplateImage* const image = new TemplateImage(make());
  return *image;
}

std::string with_header(const TemplateImage& image,
                        const qcow2::Header& header) {
  const absl::StatusOr<std::vector<uint8_t>> bytes =
      qcow2::serialize_header(header);
  must(bytes.status());
  std::string file = image.file;
  require(bytes->size() <= kTemplateClusterBytes, "the header fits");
  std::fill_n(file.begin(), kTemplateClusterBytes, '\0');
  std::memcpy(file.data(), bytes->data(), bytes->size());
  return file;
}

}  // namespace spindle::testing

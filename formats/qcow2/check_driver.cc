#include "formats/qcow2/check_driver.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "engine/byte_channel.h"
#include "engine/gate.h"
#include "formats/cluster/image_files.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/named_files.h"

namespace spindle::qcow2 {
namespace {

absl::Status only_check() {
  return absl::FailedPreconditionError(
      "the image was opened to be checked, not to be used");
}

class CheckDriver final : public BlockDriver {
 public:
  CheckDriver(ImageFiles files, const Header& header)
      : files_(std::move(files)),
        file_(files_.file),
        channel_(file_),
        length_bytes_(header.size_bytes),
        cluster_bytes_(header.cluster_size_bytes()) {}

  absl::Status read(const IoVector&, Sector) override { return only_check(); }
  absl::Status write(const IoVector&, Sector) override { return only_check(); }
  absl::Status flush() override {
    return read_only() ? absl::OkStatus() : file_->flush();
  }
  absl::string_view format_name() const override { return "qcow2"; }
  std::string filename() const override { return file_->filename(); }
  uint64_t length_bytes() const override { return length_bytes_; }
  bool read_only() const override { return file_->read_only(); }
  Capabilities capabilities() const override { return {Capability::kCheck}; }
  ImageInfo info() const override {
    ImageInfo info = BlockDriver::info();
    info.cluster_size_bytes = cluster_bytes_;
    return info;
  }
  BlockDriver* below() const override { return file_.get(); }
  std::optional<StorageIdentity> identity() const override {
    return file_->identity();
  }
  absl::StatusOr<CheckResult> check(const CheckOptions& options) override {
    // One at a time.
    const Gate::Closure closed(&gate_);
    return check_file(&channel_, options);
  }
  absl::Status close() override { return files_.close(); }

 private:
  const ImageFiles files_;
  const std::shared_ptr<BlockDriver> file_;
  ByteChannel channel_;
  const uint64_t length_bytes_;
  const uint64_t cluster_bytes_;
  Gate gate_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<BlockDriver>> open_for_check(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options,
    const OpenContext& context) {
  ByteChannel channel(file);
  const absl::StatusOr<Header> header = read_header_for_check(&channel);
  if (!header.ok()) return header.status();
  absl::StatusOr<ImageFiles> files = open_image_files(
      std::move(file), files_named_by(*header), options, context);
  if (!files.ok()) return files.status();
  return std::make_shared<CheckDriver>(*std::move(files), *header);
}

}  // namespace spindle::qcow2

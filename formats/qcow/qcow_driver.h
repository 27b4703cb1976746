// The qcow driver: one open image behind the driver contract.
//
// Thin: a call enters the gate and becomes one of a part's.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_FORMATS_QCOW_QCOW_DRIVER_H_
#define SPINDLE_FORMATS_QCOW_QCOW_DRIVER_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/gate.h"
#include "formats/cluster/image_files.h"
#include "formats/crypto/encrypted_transfer.h"
#include "formats/qcow/compressed_writer.h"
#include "formats/qcow/data_reader.h"
#include "formats/qcow/data_writer.h"
#include "formats/qcow/header.h"
#include "formats/qcow/image.h"
#include "formats/qcow/status_reader.h"

namespace spindle::qcow {

// Opens the image in `file`.  Options: runtime_options.h, and for an encrypted
// image "encrypt.key-secret" (formats/crypto/encrypt_options.h); to be checked,
// it needs none.
// Errors: kInvalidArgument if it is not a qcow image or an option is wrong,
// kNotFound for a secret that is not there, kUnimplemented for what is not
// supported (by name), kDataLoss for a damaged image, those of the file and of
// context.open_child.  The file is never changed.
absl::StatusOr<std::shared_ptr<BlockDriver>> open_qcow(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options,
    const OpenContext& context);

class QcowDriver final : public BlockDriver {
 public:
  // load() comes before anything else.  `encrypted` is null where nothing is.
  QcowDriver(ImageFiles files,
             std::unique_ptr<const crypto::EncryptedTransfer> encrypted,
             OpenOptions options, LogSink log);

  // Reads the image's metadata; once, or again after inactivate().  On error
  // nothing has changed.
  absl::Status load(const Header& header);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;

  absl::string_view format_name() const override { return "qcow"; }
  std::string filename() const override { return files_.file->filename(); }
  uint64_t length_bytes() const override { return header_.disk_bytes(); }
  bool read_only() const override {
    return read_only_.load(std::memory_order_acquire);
  }
  DriverLimits limits() const override;
  Capabilities capabilities() const override;
  ImageInfo info() const override;
  std::optional<StorageIdentity> identity() const override {
    return files_.file->identity();
  }
  std::shared_ptr<BlockDriver> backing() const override {
    return files_.backing;
  }

  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::Status write_compressed(const IoVector& qiov, Sector sector) override;
  absl::StatusOr<CheckResult> check(const CheckOptions& options) override;
  absl::Status reopen(const ReopenOptions& options) override;
  absl::Status inactivate() override;
  absl::Status activate() override;
  absl::Status close() override;

 private:
  // An open image and those who work on it.
  struct Parts {
    explicit Parts(std::unique_ptr<Image> opened)
        : image(std::move(opened)),
          reader(image.get()),
          writer(image.get(), &reader),
          compressed_writer(image.get(), &writer),
          status_reader(image.get()) {}
    const std::unique_ptr<Image> image;
    DataReader reader;
    DataWriter writer;
    CompressedWriter compressed_writer;
    StatusReader status_reader;
  };

  absl::Status finish_change(absl::Status status);
  // reopen(), inside the closed gate.
  absl::Status change_access(bool to_read_only,
                             const ImageFiles::Reopening& files);
  // What activate() does once it has the locks.
  absl::Status load_again();

  const ImageFiles files_;
  const std::unique_ptr<const crypto::EncryptedTransfer> encrypted_;
  // Changed by reopen(), while the gate is closed.
  OpenOptions options_;
  const LogSink log_;
  std::atomic<bool> read_only_;

  // Requests pass it; reopen, inactivate and activate close it.
  mutable Gate gate_;
  // Null while the image is inactive.  Used inside the gate, changed while it
  // is closed.
  std::unique_ptr<Parts> parts_;
  // As it was when the image was opened or activated.  Replaced only by
  // load(), when no other call is allowed.
  Header header_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_QCOW_DRIVER_H_

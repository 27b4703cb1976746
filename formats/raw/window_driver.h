// WindowDriver: a raw image that is a part of its file (raw's options "offset"
// and "size").
//
// The window begins at any byte.  Without a size it ends where the file does,
// and grows and shrinks with it.
//
// Thread safety: as BlockDriver.
#ifndef SPINDLE_FORMATS_RAW_WINDOW_DRIVER_H_
#define SPINDLE_FORMATS_RAW_WINDOW_DRIVER_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "engine/filter_driver.h"
#include "engine/format.h"

namespace spindle {

class WindowDriver final : public FilterDriver {
 public:
  // Errors: kInvalidArgument for a window that does not lie in the file, or
  // whose size is no multiple of 512.
  static absl::StatusOr<std::shared_ptr<WindowDriver>> create(
      std::shared_ptr<BlockDriver> file, uint64_t offset_bytes,
      std::optional<uint64_t> size_bytes);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector&, Sector) override { return 0; }
  uint64_t try_write(const IoVector&, Sector) override { return 0; }
  absl::string_view format_name() const override { return "raw"; }
  uint64_t length_bytes() const override;
  DriverLimits limits() const override;
  Capabilities capabilities() const override;
  ImageInfo info() const override;
  // None: what stores to another part of the file is no conflict.
  std::optional<StorageIdentity> identity() const override {
    return std::nullopt;
  }
  AccessObserver* access_observer() override { return nullptr; }
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;
  absl::Status resize(uint64_t length_bytes,
                      Preallocation preallocation) override;
  absl::Status reopen(const ReopenOptions& options) override;

 private:
  WindowDriver(std::shared_ptr<BlockDriver> file, uint64_t offset_bytes,
               std::optional<uint64_t> size_bytes);

  ByteRange in_file(ByteRange range) const {
    return {offset_bytes_ + range.offset, range.length};
  }
  // How much of a transfer lies before the end of a last, partial sector.
  uint64_t bytes_within(const IoVector& qiov, Sector sector) const;
  absl::Status check_resizable(uint64_t length_bytes) const;

  const std::shared_ptr<BlockDriver> file_;
  // By the alignment that the file has now.
  std::optional<ByteChannel> channel_;
  const uint64_t offset_bytes_;
  const std::optional<uint64_t> size_bytes_;
};

// `file`, or the part of it that "offset" and "size" say; both are taken out of
// `options`.
absl::StatusOr<std::shared_ptr<BlockDriver>> apply_window(
    std::shared_ptr<BlockDriver> file, OptionMap* options);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_WINDOW_DRIVER_H_

#include "formats/raw/raw_format.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/node_options.h"
#include "engine/sector.h"
#include "formats/raw/announcing_driver.h"
#include "formats/raw/raw_over_format.h"
#include "formats/raw/raw_probe_guard.h"
#include "formats/raw/window_driver.h"

namespace spindle {
namespace {

// The longest file, in whole sectors.
constexpr uint64_t kLongestBytes =
    align_down(std::numeric_limits<int64_t>::max(), kSectorSizeBytes);

}  // namespace

int RawFormat::probe(absl::Span<const uint8_t>, absl::string_view) const {
  return 1;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> RawFormat::open(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options,
    const OpenContext&) const {
  if (options.snapshot.has_value())
    return absl::UnimplementedError("a raw image has no snapshots");
  OptionMap own = options.driver_options;
  absl::StatusOr<std::shared_ptr<BlockDriver>> window =
      apply_window(file, &own);
  if (!window.ok()) return window;
  if (absl::Status status = refuse_left_options("format", name(), own);
      !status.ok()) {
    return status;
  }
  // A window announces what it does itself.
  if (*window == file && file->access_observer() != nullptr) {
    file = std::make_shared<AnnouncingDriver>(std::move(file));
  } else {
    file = *std::move(window);
    const bool is_format = std::any_of(
        others_.begin(), others_.end(), [&file](const ImageFormat* other) {
          return other->name() == file->format_name();
        });
    if (is_format) file = std::make_shared<RawOverFormat>(std::move(file));
  }
  if (!options.probed) return file;
  return std::make_shared<RawProbeGuard>(std::move(file), others_);
}

absl::Status RawFormat::check_create(const CreateOptions& options) const {
  if (*options.size_bytes <= kLongestBytes) return absl::OkStatus();
  return with_qemu_words(absl::InvalidArgumentError(absl::StrCat(
                             "Image size must be less than 8 EiB, not ",
                             *options.size_bytes, " bytes")),
                         "Could not resize file: Invalid argument");
}

absl::Status RawFormat::create(std::shared_ptr<BlockDriver> file,
                               const CreateOptions& options,
                               const OpenContext&) const {
  ABSL_ASSERT(options.size_bytes.has_value());
  if (!options.backing_filename.empty() || !options.backing_format.empty()) {
    return absl::InvalidArgumentError(
        "Backing file not supported for file format 'raw'");
  }
  absl::Status status = check_create(options);
  if (!status.ok()) return status;
  const uint64_t length_bytes = initial_file_length(options);
  if (file->length_bytes() >= length_bytes) return absl::OkStatus();
  return file->set_length(length_bytes, SetLengthMode::kExact);
}

absl::StatusOr<ImageFormat::Measurement> RawFormat::measure(
    const CreateOptions& options, BlockDriver*) const {
  const uint64_t length_bytes = initial_file_length(options);
  return Measurement{length_bytes, length_bytes, std::nullopt};
}

std::vector<OptionHelp> RawFormat::create_options() const {
  return {{"size", "<size>", "Virtual disk size"}};
}

uint64_t RawFormat::initial_file_length(const CreateOptions& options) const {
  // What is longer is refused before this is asked, but for measuring.
  return align_up(std::min(options.size_bytes.value_or(0), kLongestBytes),
                  kSectorSizeBytes);
}

}  // namespace spindle

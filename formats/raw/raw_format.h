// RawFormat: the image format that is none: the image is its file.
//
// Thread safety: stateless; any thread may call anything.
#ifndef SPINDLE_FORMATS_RAW_RAW_FORMAT_H_
#define SPINDLE_FORMATS_RAW_RAW_FORMAT_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/format.h"

namespace spindle {

class RawFormat final : public ImageFormat {
 public:
  // `others`: the formats that a later guess might find.  Not owned.
  explicit RawFormat(std::vector<const ImageFormat*> others)
      : others_(std::move(others)) {}

  absl::string_view name() const override { return "raw"; }
  // 1: anything may be a raw image.
  int probe(absl::Span<const uint8_t> head,
            absl::string_view filename) const override;
  // `file` itself; behind a RawProbeGuard if the format was guessed.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions& options,
      const OpenContext& context) const override;
  absl::Status create(std::shared_ptr<BlockDriver> file,
                      const CreateOptions& options,
                      const OpenContext& context) const override;
  absl::Status check_create(const CreateOptions& options) const override;
  std::vector<OptionHelp> create_options() const override;
  absl::StatusOr<Measurement> measure(const CreateOptions& options,
                                      BlockDriver* source) const override;
  // The size, in whole sectors.
  uint64_t initial_file_length(const CreateOptions& options) const override;

 private:
  const std::vector<const ImageFormat*> others_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_RAW_FORMAT_H_

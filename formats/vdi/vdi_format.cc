#include "formats/vdi/vdi_format.h"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "formats/vdi/create.h"
#include "formats/vdi/header.h"
#include "formats/vdi/vdi_driver.h"

namespace spindle::vdi {
namespace {

constexpr int kProbeCertain = 100;

class VdiFormat final : public ImageFormat {
 public:
  absl::string_view name() const override { return "vdi"; }

  int probe(absl::Span<const uint8_t> head, absl::string_view) const override {
    return looks_like_vdi(head) ? kProbeCertain : 0;
  }

  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions& options,
      const OpenContext&) const override {
    return open_vdi(std::move(file), options);
  }

  absl::Status check_create(const CreateOptions& options) const override {
    return plan_create(options).status();
  }

  absl::Status create(std::shared_ptr<BlockDriver> file,
                      const CreateOptions& options,
                      const OpenContext&) const override {
    const absl::StatusOr<Header> header = plan_create(options);
    if (!header.ok()) return header.status();
    return write_image(*header, file);
  }

  std::vector<OptionHelp> create_options() const override {
    return {
        {"size", "<size>", "Virtual disk size"},
        {"static", "<bool (on/off)>", "VDI static (pre-allocated) image"},
    };
  }

  uint64_t initial_file_length(const CreateOptions&) const override {
    return 0;
  }
};

}  // namespace

const ImageFormat* vdi_format() {
  static const VdiFormat* const format = new VdiFormat();
  return format;
}

}  // namespace spindle::vdi

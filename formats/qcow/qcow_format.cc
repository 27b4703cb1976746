#include "formats/qcow/qcow_format.h"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "formats/qcow/create.h"
#include "formats/qcow/header.h"
#include "formats/qcow/qcow_driver.h"

namespace spindle::qcow {
namespace {

constexpr int kProbeCertain = 100;

class QcowFormat final : public ImageFormat {
 public:
  absl::string_view name() const override { return "qcow"; }

  int probe(absl::Span<const uint8_t> head, absl::string_view) const override {
    return looks_like_qcow(head) ? kProbeCertain : 0;
  }

  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions& options,
      const OpenContext& context) const override {
    return open_qcow(std::move(file), options, context);
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
    return qcow::create_options();
  }

  bool supports_backing() const override { return true; }
  uint64_t initial_file_length(const CreateOptions&) const override {
    return 0;
  }
};

}  // namespace

const ImageFormat* qcow_format() {
  static const QcowFormat* const format = new QcowFormat();
  return format;
}

}  // namespace spindle::qcow

#include "formats/qcow2/qcow2_format.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "formats/qcow2/amend_plan.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/measure.h"
#include "formats/qcow2/qcow2_driver.h"

namespace spindle::qcow2 {
namespace {

constexpr int kProbeCertain = 100;

class Qcow2Format final : public ImageFormat {
 public:
  absl::string_view name() const override { return "qcow2"; }

  int probe(absl::Span<const uint8_t> head, absl::string_view) const override {
    return looks_like_qcow2(head) ? kProbeCertain : 0;
  }

  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions& options,
      const OpenContext& context) const override {
    return open_qcow2(std::move(file), options, context);
  }

  absl::Status check_create(const CreateOptions& options) const override {
    return plan_create(options).status();
  }

  absl::Status create(std::shared_ptr<BlockDriver> file,
                      const CreateOptions& options,
                      const OpenContext&) const override {
    const absl::StatusOr<CreatePlan> plan = plan_create(options);
    if (!plan.ok()) return plan.status();
    return write_image(*plan, file);
  }

  std::vector<OptionHelp> create_options() const override {
    std::vector<OptionHelp> options = {
        {"backing_file", "<str>", "File name of a base image"},
        {"backing_fmt", "<str>", "Image format of the base image"},
        {"cluster_size", "<size>", "qcow2 cluster size"},
        {"compat", "<str>", "Compatibility level (v2 [0.10] or v3 [1.1])"},
        {"compression_type", "<str>",
         "Compression method used for image cluster compression"},
        {"data_file", "<str>", "File name of an external data file"},
        {"data_file_raw", "<bool (on/off)>",
         "The external data file must stay valid as a raw image"},
        {"encryption", "<bool (on/off)>",
         "Encrypt the image with format 'aes'. (Deprecated in favor of "
         "encrypt.format=aes)"},
        {"extended_l2", "<bool (on/off)>", "Extended L2 tables"},
        {"lazy_refcounts", "<bool (on/off)>", "Postpone refcount updates"},
        {"preallocation", "<str>",
         "Preallocation mode (allowed values: off, metadata, falloc, full)"},
        {"refcount_bits", "<num>", "Width of a reference count entry in bits"},
        {"size", "<size>", "Virtual disk size"},
    };
    for (OptionHelp& option : encryption_options())
      options.push_back(std::move(option));
    std::sort(options.begin(), options.end(),
              [](const OptionHelp& a, const OptionHelp& b) {
                return a.name < b.name;
              });
    return options;
  }

  std::vector<OptionHelp> amend_options() const override {
    return qcow2::amend_options();
  }

  absl::StatusOr<std::optional<NewDataFile>> new_data_file(
      const CreateOptions& options) const override {
    const absl::StatusOr<CreatePlan> plan = plan_create(options);
    if (!plan.ok()) return plan.status();
    if (!plan->header.has_data_file()) return std::nullopt;
    NewDataFile file;
    file.filename = plan->header.data_filename();
    file.length_bytes = plan->header.size_bytes;
    const auto preallocation = options.options.find("preallocation");
    // Of metadata there is none.
    if (preallocation != options.options.end() &&
        preallocation->second != "metadata") {
      file.options.insert(*preallocation);
    }
    return file;
  }

  absl::StatusOr<Measurement> measure(const CreateOptions& options,
                                      BlockDriver* source) const override {
    return measure_image(options, source);
  }

  bool supports_backing() const override { return true; }
  bool new_images_read_as_zeroes(const CreateOptions& options) const override {
    const absl::StatusOr<CreatePlan> plan = plan_create(options);
    return plan.ok() && plan->reads_as_zeroes();
  }
  uint64_t initial_file_length(const CreateOptions&) const override {
    return 0;
  }
};

}  // namespace

const ImageFormat* qcow2_format() {
  static const Qcow2Format* const format = new Qcow2Format();
  return format;
}

}  // namespace spindle::qcow2

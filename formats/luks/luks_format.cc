#include "formats/luks/luks_format.h"

#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/checked_math.h"
#include "engine/node_options.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/luks/amend.h"
#include "formats/luks/create.h"
#include "formats/luks/luks_driver.h"

namespace spindle::luks {
namespace {

constexpr int kProbeCertain = 100;
constexpr char kKeySecret[] = "key-secret";

absl::StatusOr<CreatePlan> plan_image(const CreateOptions& options) {
  absl::StatusOr<CreatePlan> plan = plan_create(options.options, "");
  if (!plan.ok()) return plan.status();
  const uint64_t longest =
      align_down(std::numeric_limits<int64_t>::max(), kSectorSizeBytes) -
      plan->header_area_bytes();
  if (*options.size_bytes > longest) {
    return absl::InvalidArgumentError(
        absl::StrCat("Image size must be at most ", longest, " bytes, not ",
                     *options.size_bytes));
  }
  return plan;
}

class LuksFormat final : public ImageFormat {
 public:
  absl::string_view name() const override { return "luks"; }

  int probe(absl::Span<const uint8_t> head, absl::string_view) const override {
    return looks_like_luks(head) ? kProbeCertain : 0;
  }

  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions& options,
      const OpenContext& context) const override {
    if (options.snapshot.has_value())
      return absl::UnimplementedError("a LUKS volume has no snapshots");
    OptionMap others = options.driver_options;
    others.erase(kKeySecret);
    absl::Status status = refuse_left_options("format", name(), others);
    if (!status.ok()) return status;
    const auto passphrase = crypto::find_secret(
        options.driver_options, kKeySecret, context.secrets.get());
    if (!passphrase.ok()) return passphrase.status();
    return LuksDriver::open(std::move(file), **passphrase, context.secrets);
  }

  absl::Status check_create(const CreateOptions& options) const override {
    const absl::StatusOr<CreatePlan> plan = plan_image(options);
    if (!plan.ok()) return plan.status();
    return crypto::find_secret(options.options, kKeySecret,
                               options.secrets.get())
        .status();
  }

  absl::Status create(std::shared_ptr<BlockDriver> file,
                      const CreateOptions& options,
                      const OpenContext&) const override {
    const absl::StatusOr<CreatePlan> plan = plan_image(options);
    if (!plan.ok()) return plan.status();
    const auto passphrase =
        crypto::find_secret(options.options, kKeySecret, options.secrets.get());
    if (!passphrase.ok()) return passphrase.status();
    // The file has its length before it is a volume.
    ByteChannel channel(std::move(file));
    absl::Status status =
        channel.set_length(plan->header_area_bytes() +
                               align_up(*options.size_bytes, kSectorSizeBytes),
                           SetLengthMode::kGrowOnly);
    if (!status.ok()) return status;
    Header header;
    return write_volume({&channel}, *plan, (*passphrase)->span(), &header)
        .status();
  }

  absl::StatusOr<Measurement> measure(const CreateOptions& options,
                                      BlockDriver*) const override {
    absl::Status status = check_create(options);
    if (!status.ok()) return status;
    const absl::StatusOr<CreatePlan> plan = plan_image(options);
    if (!plan.ok()) return plan.status();
    Measurement measured;
    measured.fully_allocated_bytes =
        plan->header_area_bytes() +
        align_up(*options.size_bytes, kSectorSizeBytes);
    measured.required_bytes = measured.fully_allocated_bytes;
    return measured;
  }

  std::vector<OptionHelp> create_options() const override {
    return luks::create_options();
  }
  std::vector<OptionHelp> amend_options() const override {
    return luks::amend_options();
  }
  uint64_t initial_file_length(const CreateOptions&) const override {
    return 0;
  }
  bool new_images_read_as_zeroes(const CreateOptions&) const override {
    return false;
  }
};

}  // namespace

const ImageFormat* luks_format() {
  static const LuksFormat* const format = new LuksFormat();
  return format;
}

}  // namespace spindle::luks

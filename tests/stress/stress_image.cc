#include "tests/stress/stress_image.h"

#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/io_vector.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tests/differential/our_image.h"
#include "tests/support/observing_driver.h"

namespace spindle::testing {
namespace {

// Of all that is encrypted.
constexpr char kPassphrase[] = "opensesame";

// No write of a model has this stamp.
constexpr uint64_t kBackingStamp = uint64_t{1} << 60;

// What lies in the backing file, or in the image that is compressed: data, but
// for every fourth 32 KiB.
void data_with_holes(uint64_t offset, absl::Span<uint8_t> out) {
  stamp_content(kBackingStamp, offset, out);
  for (size_t i = 0; i < out.size(); ++i) {
    if ((offset + i) / 32768 % 4 == 3) out[i] = 0;
  }
}

// ... of a file that is `length_bytes` long.
ContentFunction content_until(uint64_t length_bytes) {
  return [length_bytes](uint64_t offset, absl::Span<uint8_t> out) {
    data_with_holes(offset, out);
    for (size_t i = 0; i < out.size(); ++i) {
      if (offset + i >= length_bytes) out[i] = 0;
    }
  };
}

absl::Status write_content(const ImageFile& image, uint64_t length_bytes,
                           const std::string& options) {
  std::vector<uint8_t> bytes(length_bytes);
  data_with_holes(0, absl::MakeSpan(bytes));
  if (image.format == "raw") return write_file(image.path, bytes);
  const ImageFile raw{image.path + ".source", "raw"};
  absl::Status status = write_file(raw.path, bytes);
  if (status.ok()) status = qemu_convert(raw, image, options);
  ::unlink(raw.path.c_str());
  return status;
}

}  // namespace

StressImage::StressImage(const StressVariant& variant)
    : variant_(variant),
      image_{variant.on_tmpfs ? tmpfs_path(variant.name)
                              : temporary_path(variant.name),
             variant.format, variant.encrypted ? kPassphrase : "",
             variant.backing_options.empty()
                 ? ""
                 : ",backing.encrypt.key-secret=secret0"},
      backing_{image_.path + ".backing", variant.backing_format,
               variant.backing_options.empty() ? "" : kPassphrase},
      flat_{image_.path + ".flat", "raw"} {
  ModelDisk::Options options{
      .length_bytes = variant.length_bytes, .initial = {}, .backing = {}};
  if (variant.compressed) options.initial = content_until(variant.length_bytes);
  if (!variant.backing_format.empty())
    options.initial = content_until(variant.backing_bytes);
  if (variant.discard_shows_backing) options.backing = options.initial;
  model_ = std::make_unique<ModelDisk>(std::move(options));
}

StressImage::~StressImage() {
  for (const ImageFile& file : {image_, backing_, flat_})
    ::unlink(file.path.c_str());
}

absl::StatusOr<std::unique_ptr<StressImage>> StressImage::create(
    const StressVariant& variant) {
  std::unique_ptr<StressImage> image(new StressImage(variant));
  const absl::Status status = image->make_files();
  if (!status.ok()) return status;
  return image;
}

std::string StressImage::folder() const {
  return image_.path.substr(0, image_.path.rfind('/') + 1);
}

absl::Status StressImage::make_files() const {
  if (variant_.compressed) {
    absl::Status status = write_content(flat_, variant_.length_bytes, "");
    if (status.ok())
      status = qemu_convert(flat_, image_, variant_.create_options, {"-c"});
    return status;
  }
  QemuCreate create{.image = image_,
                    .size_bytes = variant_.length_bytes,
                    .options = variant_.create_options,
                    .backing = std::nullopt};
  if (!variant_.backing_format.empty()) {
    const absl::Status status = write_content(backing_, variant_.backing_bytes,
                                              variant_.backing_options);
    if (!status.ok()) return status;
    // The image names it without its folder: with a long path the header would
    // leave no room for bitmaps in a first cluster of 512 bytes.
    create.backing =
        ImageFile{backing_.path.substr(folder().size()), backing_.format};
  }
  return variant_.encrypted ? create_encrypted(create) : qemu_create(create);
}

absl::Status StressImage::create_encrypted(const QemuCreate& create) const {
  CreateOptions options;
  options.size_bytes = create.size_bytes;
  if (create.backing.has_value()) {
    options.backing_filename = create.backing->path;
    options.backing_format = create.backing->format;
    options.unsafe_backing = true;
  }
  for (const absl::string_view option : absl::StrSplit(create.options, ',')) {
    const std::vector<std::string> parts = absl::StrSplit(option, '=');
    options.options[parts[0]] = parts[1];
  }
  absl::Status status = create_ours(create.image, std::move(options));
  if (!status.ok() || create.image.format != "luks") return status;
  // What nobody wrote is noise.
  auto driver = open_driver(create.image, /*read_only=*/false, {});
  if (!driver.ok()) return driver.status();
  std::vector<uint8_t> zeroes(create.size_bytes);
  status = (*driver)->write(IoVector(zeroes.data(), zeroes.size()), Sector(0));
  const absl::Status closed = (*driver)->close();
  return status.ok() ? closed : status;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> StressImage::open_driver(
    const ImageFile& image, bool read_only,
    const OptionMap& driver_options) const {
  const DriverRegistry& registry = builtin_drivers();
  const StorageProtocol* protocol = registry.find_protocol("file");
  const ImageFormat* format = registry.find_format(image.format);
  if (protocol == nullptr || format == nullptr)
    return absl::InternalError("no such driver");
  OpenOptions options;
  options.read_only = read_only;
  auto file = protocol->open(image.path, options);
  if (!file.ok()) return file.status();
  OpenContext context;
  auto secrets = std::make_shared<SecretStore>();
  absl::Status status =
      secrets->add("secret0", SecretBytes::copy_of(kPassphrase));
  if (!status.ok()) return status;
  context.secrets = std::move(secrets);
  context.open_child = [this](const ChildRequest& child) {
    // qcow does not say what the format is.
    return open_driver(
        {folder() + child.filename, backing_.format, backing_.passphrase},
        child.read_only, {});
  };
  options.driver_options = driver_options;
  if (!image.passphrase.empty())
    options.driver_options[secret_option(image)] = "secret0";
  return format->open(std::make_shared<ObservingDriver>(*std::move(file)),
                      options, context);
}

absl::StatusOr<std::unique_ptr<BlockDevice>> StressImage::open(
    Executor* executor, BlockDeviceOptions options, bool read_only) const {
  auto driver = open_driver(image_, read_only, variant_.open_options);
  if (!driver.ok()) return driver.status();
  return BlockDevice::create(*std::move(driver), executor, std::move(options));
}

absl::StatusOr<std::vector<uint8_t>> StressImage::verify(BlockDevice& device) {
  if (device.length_bytes() != model_->length_bytes()) {
    return absl::DataLossError(absl::StrCat("the disk has ",
                                            device.length_bytes(), " bytes of ",
                                            model_->length_bytes()));
  }
  std::vector<uint8_t> content(device.length_bytes());
  const size_t piece = std::min<size_t>(content.size(), 1 << 20);
  for (size_t offset = 0; offset < content.size(); offset += piece) {
    const size_t length = std::min(piece, content.size() - offset);
    const ModelDisk::Read read = model_->begin_read({offset, length});
    const absl::Status status =
        device.pread(IoVector(content.data() + offset, length), offset);
    if (!status.ok()) {
      model_->drop_read(read);
      return status;
    }
    const auto mismatch = model_->end_read(
        read, absl::MakeConstSpan(content.data() + offset, length));
    if (mismatch) {
      return absl::DataLossError(absl::StrCat("byte ", mismatch->offset, " is ",
                                              mismatch->found, ": ",
                                              mismatch->explanation));
    }
  }
  return content;
}

absl::Status StressImage::judge(const std::vector<uint8_t>& content) const {
  absl::Status status = write_file(flat_.path, content);
  if (status.ok() && (image_.format == "qcow2" || image_.format == "vdi"))
    status = qemu_check(image_);
  if (status.ok()) status = qemu_compare(image_, flat_);
  return status;
}

}  // namespace spindle::testing

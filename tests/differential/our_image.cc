#include "tests/differential/our_image.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"

namespace spindle::testing {

Executor* shared_executor() {
  // Lives as long as the process.
  static Executor* const executor =
      make_executor(
          {.width = 4, .name = "differential", .interleaving_seed = 1})
          .release();
  return executor;
}

namespace {

constexpr char kSecret[] = "secret0";

ImageOpener opener_for(const ImageFile& image) {
  ImageOpener::Policy policy;
  policy.probe_unstatable_backing = true;
  auto secrets = std::make_shared<SecretStore>();
  secrets->add(kSecret, SecretBytes::copy_of(image.passphrase)).IgnoreError();
  policy.secrets = std::move(secrets);
  return ImageOpener(builtin_drivers(), std::move(policy));
}

}  // namespace

absl::Status create_ours(const ImageFile& image, CreateOptions options) {
  if (!image.passphrase.empty())
    options.options[secret_option(image)] = kSecret;
  return opener_for(image).create(image.path, image.format, options);
}

absl::StatusOr<std::unique_ptr<BlockDevice>> open_ours(
    const ImageFile& image, bool read_only, const OptionMap& driver_options) {
  const ImageOpener opener = opener_for(image);
  OpenOptions options;
  options.read_only = read_only;
  options.driver_options = driver_options;
  if (!image.passphrase.empty())
    options.driver_options[secret_option(image)] = kSecret;
  auto driver = opener.open(image.path, image.format, options);
  if (!driver.ok()) return driver.status();
  return BlockDevice::create(*std::move(driver), shared_executor());
}

absl::StatusOr<std::vector<uint8_t>> read_everything(BlockDevice& device) {
  std::vector<uint8_t> content(device.length_bytes());
  uint64_t piece = 512;
  for (uint64_t offset = 0; offset < content.size();) {
    const uint64_t length = std::min(piece, content.size() - offset);
    const absl::Status status =
        device.pread(IoVector(content.data() + offset, length), offset);
    if (!status.ok()) return status;
    offset += length;
    piece = piece * 3 % ((1 << 20) - 1) + 1;
  }
  return content;
}

absl::StatusOr<std::vector<uint8_t>> qemu_content(const ImageFile& image) {
  const ImageFile raw{temporary_path("content"), "raw"};
  const absl::Status status = qemu_convert(image, raw, "");
  if (!status.ok()) return status;
  auto content = read_file(raw.path);
  ::unlink(raw.path.c_str());
  return content;
}

}  // namespace spindle::testing

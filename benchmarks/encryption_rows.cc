#include "benchmarks/encryption_rows.h"

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/bench_images.h"
#include "benchmarks/loops.h"
#include "benchmarks/offsets.h"
#include "engine/block_device.h"
#include "engine/completion_queue.h"
#include "engine/image_opener.h"
#include "engine/jobs/copy.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "formats/builtin.h"
#include "tests/support/qemu_tools.h"

namespace spindle::benchmarks {
namespace {

using testing::ImageFile;

constexpr char kPassphrase[] = "opensesame";
constexpr char kSecret[] = "secret0";
constexpr double kTarget = 1.5;
constexpr uint32_t kReadBytes = 65536;
constexpr size_t kDepth = 32;

class Files {
 public:
  Files(const BenchContext& context, const std::string& format)
      : context_(context),
        stem_(absl::StrCat(context.settings->tmpfs, "/spindle-ratios.",
                           ::getpid(), ".", format)),
        plain_(context.settings->tmpfs, bytes()),
        encrypted_{stem_, format, kPassphrase},
        target_{stem_ + ".new", format, kPassphrase},
        flat_{stem_ + ".raw", "raw"} {}
  ~Files() {
    for (const ImageFile& file : {encrypted_, target_, flat_})
      ::unlink(file.path.c_str());
  }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;

  absl::Status make() {
    absl::Status status = plain_.make();
    return status.ok() ? ours(plain_.raw(), encrypted_) : status;
  }

  uint64_t bytes() const { return context_.settings->image_bytes() / 4; }
  const ImageFile& encrypted() const { return encrypted_; }

  // Disks a second.
  absl::StatusOr<double> copy_out(bool by_qemu) const {
    return timed(by_qemu, encrypted_, flat_);
  }
  absl::StatusOr<double> copy_in(bool by_qemu) const {
    return timed(by_qemu, plain_.raw(), target_);
  }
  // 64 KiB reads a second.
  absl::StatusOr<double> reads() const;
  absl::StatusOr<double> qemu_reads() const;

 private:
  static ImageOpener opener() {
    auto secrets = std::make_shared<SecretStore>();
    secrets->add(kSecret, SecretBytes::copy_of(kPassphrase)).IgnoreError();
    ImageOpener::Policy policy;
    policy.secrets = std::move(secrets);
    return ImageOpener(builtin_drivers(), std::move(policy));
  }
  // Of a new image; keys are not what is measured.
  static OptionMap create_options(const ImageFile& image) {
    if (image.passphrase.empty()) return {};
    const std::string prefix = image.format == "luks" ? "" : "encrypt.";
    OptionMap options = {{prefix + "key-secret", kSecret},
                         {prefix + "iter-time", "0"}};
    if (!prefix.empty()) options[prefix + "format"] = "luks";
    return options;
  }
  absl::StatusOr<std::unique_ptr<BlockDevice>> open(
      const ImageFile& image, bool read_only, CompletionQueue* queue) const;
  // What convert does.
  absl::Status ours(const ImageFile& from, const ImageFile& to) const;
  static absl::Status qemus(const ImageFile& from, const ImageFile& to);
  absl::StatusOr<double> timed(bool by_qemu, const ImageFile& from,
                               const ImageFile& to) const;

  const BenchContext& context_;
  const std::string stem_;
  const FilledImages plain_;
  const ImageFile encrypted_;
  const ImageFile target_;
  const ImageFile flat_;
};

absl::StatusOr<std::unique_ptr<BlockDevice>> Files::open(
    const ImageFile& image, bool read_only, CompletionQueue* queue) const {
  OpenOptions options;
  options.read_only = read_only;
  options.no_flush = !read_only;
  if (!image.passphrase.empty())
    options.driver_options[testing::secret_option(image)] = kSecret;
  auto driver = opener().open(image.path, image.format, options);
  if (!driver.ok()) return driver.status();
  BlockDeviceOptions device;
  device.max_workers = context_.executor->width();
  device.completion_queue = queue;
  return BlockDevice::create(*std::move(driver), context_.executor, device);
}

absl::Status Files::ours(const ImageFile& from, const ImageFile& to) const {
  CreateOptions create;
  create.size_bytes = bytes();
  create.options = create_options(to);
  ::unlink(to.path.c_str());
  absl::Status status = opener().create(to.path, to.format, create);
  if (!status.ok()) return status;
  auto source = open(from, /*read_only=*/true, nullptr);
  if (!source.ok()) return source.status();
  auto target = open(to, /*read_only=*/false, nullptr);
  if (!target.ok()) return target.status();
  CopyOptions copy;
  copy.target_reads_as_zeroes = to.format != "luks";
  status = copy_image(**source, **target, copy);
  const absl::Status closed = (*target)->close();
  return status.ok() ? closed : status;
}

absl::Status Files::qemus(const ImageFile& from, const ImageFile& to) {
  ::unlink(to.path.c_str());
  std::string options;
  for (const auto& [name, value] : create_options(to))
    absl::StrAppend(&options, options.empty() ? "" : ",", name, "=", value);
  return testing::qemu_convert(from, to, options);
}

absl::StatusOr<double> Files::timed(bool by_qemu, const ImageFile& from,
                                    const ImageFile& to) const {
  // qemu-img gives up where a short measurement of how fast keys are derived
  // finds no processor time used.
  for (int attempt = 0;; ++attempt) {
    const auto begin = std::chrono::steady_clock::now();
    const absl::Status status = by_qemu ? qemus(from, to) : ours(from, to);
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - begin;
    if (status.ok()) return 1 / elapsed.count();
    if (!by_qemu || attempt == 50) return status;
  }
}

absl::StatusOr<double> Files::reads() const {
  auto queue = CompletionQueue::create(
      {.poll_limit = absl::Microseconds(context_.settings->poll_us)});
  if (!queue.ok()) return queue.status();
  auto device = open(encrypted_, /*read_only=*/true, queue->get());
  if (!device.ok()) return device.status();
  const Workload work{.image_bytes = bytes(),
                      .request_bytes = kReadBytes,
                      .step_bytes = kReadBytes,
                      .requests = bytes() / kReadBytes};
  return aio_requests(**device, work, kDepth);
}

absl::StatusOr<double> Files::qemu_reads() const {
  const std::string socket = stem_ + ".socket", pid = stem_ + ".pid";
  const std::string image = absl::StrCat(
      "driver=", encrypted_.format, ",file.filename=", encrypted_.path, ",",
      testing::secret_option(encrypted_), "=", kSecret);
  absl::StatusOr<std::string> done = testing::run_tool_ok(
      {"qemu-nbd", "--fork", "--persistent", "--read-only", "--pid-file", pid,
       "--socket", socket, "--object",
       absl::StrCat("secret,id=", kSecret, ",data=", kPassphrase),
       "--image-opts", image});
  if (!done.ok()) return done.status();
  const auto begin = std::chrono::steady_clock::now();
  done = testing::run_tool_ok(
      {"nbdcopy", "--connections=1", absl::StrCat("--requests=", kDepth),
       absl::StrCat("--request-size=", kReadBytes),
       absl::StrCat("nbd+unix:///?socket=", socket), "null:"});
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - begin;
  const auto stopped = testing::run_tool_ok(
      {"sh", "-c", absl::StrCat("kill $(cat ", pid, "); rm -f ", socket)});
  ::unlink(pid.c_str());
  if (!done.ok()) return done.status();
  if (!stopped.ok()) return stopped.status();
  return static_cast<double>(bytes() / kReadBytes) / elapsed.count();
}

struct Row {
  const char* name;
  Measurement ours;
  Measurement theirs;
  const char* their_name;
  double unit;
};

absl::Status add_row(const BenchContext& context, const std::string& format,
                     const Row& row) {
  const auto medians =
      measure_in_turns({{"ours", row.ours}, {row.their_name, row.theirs}},
                       context.settings->rounds);
  if (!medians.ok()) return medians.status();
  RatioRow result{absl::StrCat(row.name, ", ", format), medians->at("ours"),
                  medians->at(row.their_name), row.their_name, kTarget};
  result.unit = row.unit;
  context.table->add(std::move(result));
  return absl::OkStatus();
}

}  // namespace

absl::Status add_encryption_rows(const BenchContext& context) {
  for (const std::string format : {"luks", "qcow2"}) {
    Files files(context, format);
    absl::Status status = files.make();
    for (const Row& row :
         {Row{"disks a second, out of encrypted",
              [&] { return files.copy_out(false); },
              [&] { return files.copy_out(true); }, "qemu-img convert", 1},
          Row{"disks a second, into encrypted",
              [&] { return files.copy_in(false); },
              [&] { return files.copy_in(true); }, "qemu-img convert", 1},
          Row{"64 KiB reads of encrypted, depth 32",
              [&] { return files.reads(); }, [&] { return files.qemu_reads(); },
              "nbdcopy, qemu-nbd", 1000}}) {
      if (status.ok()) status = add_row(context, format, row);
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace spindle::benchmarks

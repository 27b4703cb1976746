#include "tests/formats/qcow2/memory_image.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "engine/io_vector.h"
#include "engine/secret_bytes.h"
#include "formats/qcow2/qcow2_format.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

void require(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  std::abort();
}

MemoryDriver::Options file_options(const MemoryImageOptions& options) {
  MemoryDriver::Options file;
  file.max_length_bytes = options.max_file_bytes;
  return file;
}

// Images that are made from bytes name the backing file of the image that those
// come from: the same content has the same name.
std::string backing_path_of(const MemoryImageOptions& options) {
  if (options.backing.empty()) return "";
  static absl::Mutex mutex(absl::kConstInit);
  static auto* const paths = new std::map<std::string, std::string>();
  absl::MutexLock lock(&mutex);
  std::string& path = (*paths)[options.backing];
  if (path.empty()) path = temporary_path("backing");
  return path;
}

absl::Span<const uint8_t> as_span(const std::string& bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

void add_encryption(const MemoryImageOptions& options, CreateOptions* create) {
  if (options.encryption.empty()) return;
  create->secrets = test_secrets();
  create->options["encrypt.format"] = options.encryption;
  create->options["encrypt.key-secret"] = "secret0";
  // Deriving keys is not what is tested.
  if (options.encryption == "luks") create->options["encrypt.iter-time"] = "0";
}

// Of what qemu-img check printed.
bool finds_copied_flags_only(const std::string& output) {
  for (const absl::string_view line : absl::StrSplit(output, '\n')) {
    if (absl::StartsWith(line, "ERROR ") &&
        !absl::StartsWith(line, "ERROR OFLAG_COPIED ")) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::shared_ptr<const SecretStore> test_secrets() {
  auto secrets = std::make_shared<SecretStore>();
  require(secrets->add("secret0", SecretBytes::copy_of(kTestPassphrase)),
          "secret0");
  require(secrets->add("wrong", SecretBytes::copy_of("shutsesame")), "wrong");
  return secrets;
}

absl::Status check_image_bytes(const std::string& bytes, Leaks leaks) {
  constexpr int kCorruptions = 2;
  constexpr int kLeaksOnly = 3;
  const std::string path = temporary_path("image");
  absl::Status status = write_file(path, as_span(bytes));
  if (!status.ok()) return status;
  std::vector<std::string> arguments = {"qemu-img", "check"};
  constexpr size_t kCryptMethodEnd = 36;
  if (bytes.size() >= kCryptMethodEnd && bytes[kCryptMethodEnd - 1] != 0) {
    arguments.insert(
        arguments.end(),
        {"--object", absl::StrCat("secret,id=secret0,data=", kTestPassphrase),
         "--image-opts",
         absl::StrCat("driver=qcow2,encrypt.key-secret=secret0,file.filename=",
                      path)});
  } else {
    arguments.insert(arguments.end(), {"-f", "qcow2", path});
  }
  const auto result = run_tool(arguments);
  ::unlink(path.c_str());
  if (!result.ok()) return result.status();
  if (result->exit_code == 0 ||
      (result->exit_code == kLeaksOnly && leaks != Leaks::kForbidden)) {
    return absl::OkStatus();
  }
  if (result->exit_code == kCorruptions &&
      leaks == Leaks::kAllowedWithCopiedFlags &&
      finds_copied_flags_only(result->output)) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      "qemu-img check: exit code ", result->exit_code, ": ", result->output));
}

absl::Status check_own_bytes(const ImageFormat& format,
                             const std::string& bytes) {
  auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, bytes);
  OpenOptions options;
  options.read_only = options.for_check = true;
  options.open_backing = false;
  const auto driver = format.open(std::move(file), options, {});
  if (!driver.ok()) return driver.status();
  std::string lines;
  CheckOptions check;
  check.report = [&lines](absl::string_view line) {
    absl::StrAppend(&lines, line, "\n");
  };
  const auto result = (*driver)->check(check);
  if (!result.ok()) return result.status();
  return result->corruptions == 0 && result->check_errors == 0
             ? absl::OkStatus()
             : absl::DataLossError(lines);
}

absl::Status write_fill(BlockDriver& driver, ByteRange range, uint8_t value) {
  std::string data(range.length, static_cast<char>(value));
  return driver.write(IoVector(data.data(), data.size()),
                      Sector::from_byte_offset(range.offset));
}

absl::StatusOr<std::string> read_bytes(BlockDriver& driver, ByteRange range) {
  std::string data(range.length, '\xee');
  absl::Status status = driver.read(IoVector(data.data(), data.size()),
                                    Sector::from_byte_offset(range.offset));
  if (!status.ok()) return status;
  return data;
}

::testing::AssertionResult reads_as(BlockDriver& driver, ByteRange range,
                                    uint8_t value) {
  const auto data = read_bytes(driver, range);
  if (!data.ok()) {
    return ::testing::AssertionFailure() << data.status().ToString();
  }
  const auto other = std::find_if(data->begin(), data->end(), [&](char byte) {
    return byte != static_cast<char>(value);
  });
  if (other == data->end()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "byte "
         << range.offset + static_cast<uint64_t>(other - data->begin())
         << " is " << int{static_cast<uint8_t>(*other)} << ", not "
         << int{value};
}

MemoryImage::MemoryImage(MemoryImageOptions options)
    : options_(std::move(options)),
      backing_path_(backing_path_of(options_)),
      memory_(std::make_shared<MemoryDriver>(file_options(options_))),
      backing_memory_(std::make_shared<MemoryDriver>()),
      observed_backing_(std::make_shared<ObservingDriver>(backing_memory_)) {
  if (!options_.backing.empty()) {
    backing_memory_->set_content(0, options_.backing);
    // For the other implementation, which opens it by its name.
    require(write_file(backing_path_, as_span(options_.backing)), "backing");
  }
  if (options_.bytes.empty()) {
    CreateOptions create;
    create.size_bytes = options_.size_bytes;
    create.options = options_.create;
    add_encryption(options_, &create);
    create.backing_filename = backing_path_;
    create.backing_format = options_.backing.empty() ? "" : "raw";
    require(format().check_create(create), "check_create");
    require(format().create(memory_, create, {}), "create");
  } else {
    memory_->set_content(0, options_.bytes);
  }
  require(open(), "open");
}

MemoryImage::~MemoryImage() = default;

const ImageFormat& MemoryImage::format() const {
  return options_.format != nullptr ? *options_.format : *qcow2::qcow2_format();
}

OpenContext MemoryImage::context() const {
  OpenContext context;
  context.secrets = test_secrets();
  context.open_child =
      [this](
          const ChildRequest&) -> absl::StatusOr<std::shared_ptr<BlockDriver>> {
    return observed_backing_;
  };
  return context;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> MemoryImage::open_over(
    std::shared_ptr<BlockDriver> file, bool read_only) const {
  OpenOptions options = open_options();
  options.read_only = read_only;
  return format().open(std::move(file), options, context());
}

absl::Status MemoryImage::open(bool read_only) {
  observed_file_ = std::make_shared<ObservingDriver>(memory_);
  auto driver = open_over(observed_file_, read_only);
  if (!driver.ok()) return driver.status();
  driver_ = *std::move(driver);
  return absl::OkStatus();
}

OpenOptions MemoryImage::open_options() const {
  OpenOptions options;
  options.driver_options = options_.open;
  if (!options_.encryption.empty())
    options.driver_options["encrypt.key-secret"] = "secret0";
  return options;
}

absl::Status MemoryImage::close() {
  absl::Status status = driver_->close();
  driver_.reset();
  return status;
}

absl::Status MemoryImage::close_and_check(Leaks leaks) {
  absl::Status status = close();
  if (!status.ok()) return status;
  return check(memory_->content(), leaks);
}

absl::Status MemoryImage::check(const std::string& bytes, Leaks leaks) const {
  return &format() == qcow2::qcow2_format() ? check_image_bytes(bytes, leaks)
                                            : check_own_bytes(format(), bytes);
}

absl::StatusOr<std::shared_ptr<BlockDriver>> MemoryImage::open_copy(
    const std::string& bytes) const {
  auto copy = std::make_shared<MemoryDriver>();
  copy->set_content(0, bytes);
  OpenOptions options = open_options();
  options.read_only = true;
  return format().open(std::move(copy), options, context());
}

std::optional<uint64_t> MemoryImage::host_of(uint64_t guest) {
  const auto status =
      driver_->block_status({guest, 1}, BlockStatusScope::kThisLayer);
  return status.ok() && status->data ? status->host_offset : std::nullopt;
}

}  // namespace spindle::testing

// spindle-img dd: copy a part of an image into a new one.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/block_device.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "engine/jobs/copy_bytes.h"
#include "engine/jobs/job_options.h"
#include "engine/jobs/sector_status.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"
#include "tools/new_file.h"

namespace spindle {
namespace {

struct DdArguments {
  ImageArgument input;
  std::optional<std::string> input_name;
  std::optional<std::string> output;
  std::string output_format = "raw";
  uint64_t block_bytes = 512;
  std::optional<uint64_t> count;
  std::optional<uint64_t> skip;
  bool force_share = false;
};

// What of the input is copied; nothing may be left of it.
struct Part {
  ByteRange range;
  bool is_beyond = false;
};

Part part_of(const DdArguments& arguments, uint64_t input_bytes) {
  uint64_t end = input_bytes;
  if (arguments.count.has_value()) {
    const std::optional<uint64_t> wanted =
        checked_multiply(*arguments.count, arguments.block_bytes);
    end = std::min(end, wanted.value_or(end));
  }
  if (!arguments.skip.has_value()) return {{0, end}, false};
  const std::optional<uint64_t> begin =
      checked_multiply(*arguments.skip, arguments.block_bytes);
  if (!begin.has_value() || *begin > end) return {{end, 0}, true};
  return {{*begin, end - *begin}, false};
}

absl::Status check_creatable(const DdArguments& arguments,
                             const ImageOpener& opener) {
  if (builtin_drivers().find_format(arguments.output_format) == nullptr) {
    return absl::InvalidArgumentError(
        builtin_drivers().find_filter(arguments.output_format) != nullptr
            ? absl::StrCat("Format driver '", arguments.output_format,
                           "' does not support image creation")
            : "Unknown file format");
  }
  return opener.new_file_name(*arguments.output).status();
}

absl::Status write_output(const DdArguments& arguments,
                          const ImageOpener& opener, BlockDevice& input,
                          Executor* executor) {
  const Part part = part_of(arguments, whole_sectors_bytes(input));
  CreateOptions create;
  create.size_bytes = part.range.length;
  absl::Status status =
      opener.create(*arguments.output, arguments.output_format, create);
  if (!status.ok()) {
    const std::string context =
        absl::StrCat(*arguments.output, ": error while creating output image");
    return with_contexts(status, context, context);
  }
  const std::shared_ptr<BlockDriver> driver = open_or_complain(
      opener, {.name = *arguments.output, .format = arguments.output_format},
      tool_open_options());
  if (driver == nullptr) return absl::UnknownError("");
  const absl::StatusOr<std::unique_ptr<BlockDevice>> output =
      BlockDevice::create(driver, executor);
  if (!output.ok()) return output.status();
  if (part.is_beyond) {
    fail(absl::StrCat(arguments.input.name,
                      ": cannot skip to specified offset"));
  }
  JobOptions job;
  job.executor = executor;
  status = copy_bytes(input, part.range, **output, job);
  const absl::Status closed = (*output)->close();
  return status.ok() ? closed : status;
}

int run(const DdArguments& arguments, const ImageOpener& opener) {
  OpenOptions options;
  options.read_only = true;
  options.force_share = arguments.force_share;
  std::shared_ptr<BlockDriver> driver =
      open_or_complain(opener, arguments.input, options);
  if (driver == nullptr) return 1;
  absl::Status status = check_creatable(arguments, opener);
  if (!status.ok()) return fail(qemu_words(status));
  const absl::StatusOr<std::unique_ptr<Executor>> executor =
      create_executor({.width = kJobWidth});
  if (!executor.ok()) return fail(executor.status().message());
  const absl::StatusOr<std::unique_ptr<BlockDevice>> input =
      BlockDevice::create(std::move(driver), executor->get());
  if (!input.ok()) return fail_to_open(arguments.input.name, input.status());
  NewFile file(opener.new_file_name(*arguments.output).value_or(""));
  status = write_output(arguments, opener, **input, executor->get());
  (*input)->close().IgnoreError();  // it was only read
  if (status.ok()) file.keep();
  if (status.ok()) return 0;
  // What has been said already has no message.
  return status.message().empty() ? 1 : fail(qemu_words(status));
}

uint64_t block_size_or_exit(const char* text) {
  constexpr uint64_t kMost = std::numeric_limits<int32_t>::max();
  const uint64_t size = size_or_exit("bs", text);
  if (size > 0 && size <= kMost) return size;
  exit_with(
      absl::StrCat("Invalid bs specified. Must be between 1 and ", kMost, "."));
}

void read_operand(const std::string& text, DdArguments* arguments) {
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  const std::string value =
      equals == std::string::npos ? "" : text.substr(equals + 1);
  if (equals == std::string::npos) {
    exit_with(absl::StrCat("unrecognized operand ", name));
  } else if (name == "if") {
    arguments->input_name = value;
  } else if (name == "of") {
    arguments->output = value;
  } else if (name == "bs") {
    arguments->block_bytes = block_size_or_exit(value.c_str());
  } else if (name == "count") {
    arguments->count = size_or_exit("count", value.c_str());
  } else if (name == "skip") {
    arguments->skip = size_or_exit("skip", value.c_str());
  } else {
    exit_with(absl::StrCat("unrecognized operand ", name));
  }
}

}  // namespace

int run_dd(int argc, char** argv) {
  DdArguments arguments;
  OptionReader reader(argc, argv, "f:O:U",
                      {{"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"force-share", no_argument, nullptr, 'U'}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.input.format = reader.argument();
        break;
      case 'O':
        arguments.output_format = reader.argument();
        break;
      case 'U':
        arguments.force_share = true;
        break;
      default:
        break;
    }
  }
  for (const std::string& operand : reader.operands())
    read_operand(operand, &arguments);
  if (!arguments.input_name.has_value() || !arguments.output.has_value())
    return fail("Must specify both input and output files");
  arguments.input.name = *arguments.input_name;
  arguments.input.image_opts = reader.image_opts();
  return run(arguments,
             ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
}

}  // namespace spindle

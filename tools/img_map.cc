// spindle-img map: where a guest's bytes lie, through the whole chain.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "engine/jobs/job_options.h"
#include "engine/jobs/sector_status.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "threadpool/executor.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"
#include "tools/map_picture.h"
#include "tools/picture.h"

namespace spindle {
namespace {

struct MapArguments {
  ImageArgument image;
  bool json = false;
  uint64_t start_offset = 0;
  std::optional<uint64_t> max_length;
  bool force_share = false;
  std::string picture;  // a file for it; empty: the map is printed
};

// Bytes that are all alike and, where they lie somewhere, follow each other.
struct MapRun {
  uint64_t start = 0;
  BlockStatus status;

  uint64_t end() const { return start + status.length; }
  bool continues_as(const MapRun& next) const {
    const BlockStatus& a = status;
    const BlockStatus& b = next.status;
    if (a.depth != b.depth || a.allocated != b.allocated || a.zero != b.zero ||
        a.data != b.data ||
        a.host_offset.has_value() != b.host_offset.has_value()) {
      return false;
    }
    return !a.host_offset.has_value() ||
           *a.host_offset + a.length == *b.host_offset;
  }
};

class Printer {
 public:
  Printer(const MapArguments& arguments, const BlockDevice& device)
      : json_(arguments.json), device_(device) {}

  void begin() const {
    if (json_) {
      std::printf("[");
    } else {
      std::printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to",
                  "File");
    }
  }
  absl::Status print(const MapRun& run, bool last) const {
    if (!json_) return print_text(run);
    print_json(run);
    std::printf(last ? "]\n" : ",\n");
    return absl::OkStatus();
  }

 private:
  absl::Status print_text(const MapRun& run) const {
    const BlockStatus& status = run.status;
    if (!status.data) return absl::OkStatus();
    if (!status.host_offset.has_value()) {
      return absl::UnimplementedError(
          "File contains external, encrypted or compressed clusters.");
    }
    if (status.zero) return absl::OkStatus();
    std::printf("%#-16llx%#-16llx%#-16llx%s\n",
                static_cast<unsigned long long>(run.start),
                static_cast<unsigned long long>(status.length),
                static_cast<unsigned long long>(*status.host_offset),
                filename_at(status.depth).c_str());
    return absl::OkStatus();
  }
  void print_json(const MapRun& run) const {
    const auto truth = [](bool value) { return value ? "true" : "false"; };
    const BlockStatus& status = run.status;
    std::printf(
        "{ \"start\": %llu, \"length\": %llu, \"depth\": %d, \"present\": %s, "
        "\"zero\": %s, \"data\": %s",
        static_cast<unsigned long long>(run.start),
        static_cast<unsigned long long>(status.length), status.depth,
        truth(status.allocated), truth(status.zero), truth(status.data));
    if (status.host_offset.has_value()) {
      std::printf(", \"offset\": %llu",
                  static_cast<unsigned long long>(*status.host_offset));
    }
    std::printf("}");
  }
  std::string filename_at(int depth) const {
    // Each is owned by the one above it.
    const BlockDriver* driver = &device_.driver();
    for (; depth > 0; --depth) {
      driver = driver->backing().get();
      if (driver == nullptr) return {};
    }
    const std::shared_ptr<BlockDriver> data_file = driver->data_file();
    return data_file != nullptr ? data_file->filename() : driver->filename();
  }

  const bool json_;
  const BlockDevice& device_;
};

// The rest of a partial last sector reads as zeroes, and is where it would be.
absl::StatusOr<BlockStatus> status_at(BlockDevice& device, ByteRange range) {
  const uint64_t end = device.length_bytes();
  if (range.offset < end) {
    return device.block_status(
        {range.offset, std::min(range.length, end - range.offset)},
        BlockStatusScope::kWholeChain);
  }
  BlockStatus status;
  status.length = range.length;
  status.allocated = true;
  status.zero = true;
  status.host_offset = range.offset;
  return status;
}

absl::Status print_map(BlockDevice& device, const Printer& printer,
                       ByteRange range) {
  MapRun current;
  current.start = range.offset;
  printer.begin();
  while (!range.empty()) {
    const absl::StatusOr<BlockStatus> status = status_at(device, range);
    if (!status.ok()) {
      return with_context(
          status.status(),
          absl::StrCat("Failed to read status at offset ", range.offset));
    }
    const MapRun next{.start = range.offset, .status = *status};
    range = {next.end(), range.length - status->length};
    if (current.status.length != 0 && current.continues_as(next)) {
      current.status.length += next.status.length;
      continue;
    }
    if (current.status.length != 0) {
      absl::Status printed = printer.print(current, /*last=*/false);
      if (!printed.ok()) return printed;
    }
    current = next;
  }
  return printer.print(current, /*last=*/true);
}

int draw(const MapArguments& arguments, std::shared_ptr<BlockDriver> image) {
  const uint64_t end = image->length_bytes();
  const uint64_t start = std::min(arguments.start_offset, end);
  const absl::StatusOr<Picture> picture = draw_map(
      *image,
      {start, std::min(end - start, arguments.max_length.value_or(end))});
  image->close().IgnoreError();  // it was only read
  if (!picture.ok()) return fail(qemu_words(picture.status()));
  const absl::Status saved = picture->save(arguments.picture);
  return saved.ok() ? 0 : fail(saved.message());
}

int run(const MapArguments& arguments, const ImageOpener& opener) {
  if (!arguments.picture.empty()) {
    const absl::Status status = Picture::check_path(arguments.picture);
    if (!status.ok()) return fail(status.message());
  }
  OpenOptions options;
  options.read_only = true;
  options.force_share = arguments.force_share;
  std::shared_ptr<BlockDriver> driver =
      open_or_complain(opener, arguments.image, options);
  if (driver == nullptr) return 1;
  if (!arguments.picture.empty()) return draw(arguments, std::move(driver));
  const absl::StatusOr<std::unique_ptr<Executor>> executor =
      create_executor({.width = kJobWidth});
  if (!executor.ok()) return fail(executor.status().message());
  const absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      BlockDevice::create(std::move(driver), executor->get());
  if (!device.ok()) return fail(device.status().message());
  const uint64_t end = whole_sectors_bytes(**device);
  const uint64_t start = arguments.start_offset;
  const uint64_t length =
      std::min(end - std::min(start, end), arguments.max_length.value_or(end));
  absl::Status status =
      print_map(**device, Printer(arguments, **device), {start, length});
  const absl::Status closed = (*device)->close();
  if (status.ok()) status = closed;
  return status.ok() ? 0 : fail(qemu_words(status));
}

}  // namespace

int run_map(int argc, char** argv) {
  MapArguments arguments;
  std::optional<std::string> output;
  OptionReader reader(argc, argv, "f:s:l:U",
                      {{"format", required_argument, nullptr, 'f'},
                       {"output", required_argument, nullptr, kOptionOutput},
                       {"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"force-share", no_argument, nullptr, 'U'},
                       {"picture", required_argument, nullptr, kOptionPicture},
                       {"start-offset", required_argument, nullptr, 's'},
                       {"max-length", required_argument, nullptr, 'l'}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 's':
        arguments.start_offset =
            size_or_exit("start offset", reader.argument());
        break;
      case 'l':
        arguments.max_length = size_or_exit("max length", reader.argument());
        break;
      case 'U':
        arguments.force_share = true;
        break;
      case kOptionPicture:
        arguments.picture = reader.argument();
        break;
      case kOptionOutput:
        output = reader.argument();
        break;
      default:
        break;
    }
  }
  if (reader.operands().size() != 1)
    exit_with_usage("Expecting one image file name");
  arguments.image.name = reader.operands()[0];
  arguments.image.image_opts = reader.image_opts();
  arguments.json = is_json_output(output);
  if (output.has_value() && !arguments.picture.empty())
    return fail("--output and --picture are mutually exclusive");
  return run(arguments,
             ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
}

}  // namespace spindle

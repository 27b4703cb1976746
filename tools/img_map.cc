// spindle-img map: where a guest's bytes lie, through the whole chain.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "threadpool/executor.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/sector_status.h"

namespace spindle {
namespace {

struct MapArguments {
  std::vector<std::string> filenames;
  std::string format;
  std::string output = "human";
  std::string start_offset;
  std::string max_length;
  bool force_share = false;
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
      : json_(arguments.output == "json"), device_(device) {}

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

absl::Status print_map(BlockDevice& device, const Printer& printer,
                       ByteRange range) {
  MapRun current;
  current.start = range.offset;
  printer.begin();
  while (!range.empty()) {
    absl::StatusOr<BlockStatus> status =
        sector_status(device, range, BlockStatusScope::kWholeChain);
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

absl::StatusOr<std::unique_ptr<BlockDevice>> open_device(
    const MapArguments& arguments, Executor* executor) {
  const std::string& filename = arguments.filenames[0];
  ImageOpener::Policy policy;
  policy.probe_image = arguments.format.empty();
  const ImageOpener opener(builtin_drivers(), policy);
  OpenOptions options;
  options.read_only = true;
  options.force_share = arguments.force_share;
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver =
      opener.open(filename, arguments.format, options);
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      driver.ok() ? BlockDevice::create(*std::move(driver), executor)
                  : driver.status();
  if (!device.ok()) {
    return with_context(device.status(),
                        absl::StrCat("Could not open '", filename, "'"));
  }
  return device;
}

absl::Status map_image(const MapArguments& arguments, uint64_t start,
                       std::optional<uint64_t> max_length) {
  absl::StatusOr<std::unique_ptr<Executor>> executor = create_executor({});
  if (!executor.ok()) return executor.status();
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      open_device(arguments, executor->get());
  if (!device.ok()) return device.status();
  const uint64_t end = whole_sectors_bytes(**device);
  const uint64_t length =
      std::min(end - std::min(end, start), max_length.value_or(end));
  const absl::Status status = print_map(**device, Printer(arguments, **device),
                                        ByteRange{start, length});
  const absl::Status closed = (*device)->close();
  return status.ok() ? closed : status;
}

int run_map(const MapArguments& arguments) {
  if (arguments.output != "human" && arguments.output != "json")
    return fail("--output must be used with human or json as argument.");
  uint64_t start = 0;
  std::optional<uint64_t> max_length;
  if (!arguments.start_offset.empty()) {
    const auto size = parse_size_named("start offset", arguments.start_offset);
    if (!size.ok()) return fail(size.status().message());
    start = *size;
  }
  if (!arguments.max_length.empty()) {
    const auto size = parse_size_named("max length", arguments.max_length);
    if (!size.ok()) return fail(size.status().message());
    max_length = *size;
  }
  if (arguments.filenames.size() != 1) {
    return fail(
        "Expecting one image file name\n"
        "Try 'spindle-img --help' for more information");
  }
  const absl::Status status = map_image(arguments, start, max_length);
  return status.ok() ? 0 : fail(status.message());
}

}  // namespace

Command add_map_command(CLI::App* app) {
  auto arguments = std::make_shared<MapArguments>();
  CLI::App* map =
      app->add_subcommand("map", "Say where an image's bytes lie in its files");
  map->add_option("filename", arguments->filenames, "the image");
  map->add_option("-f", arguments->format, "its format; guessed if not stated");
  map->add_option("--output", arguments->output, "human or json");
  map->add_option("-s,--start-offset", arguments->start_offset,
                  "begin there (0)");
  map->add_option("-l,--max-length", arguments->max_length,
                  "as many bytes (all)");
  map->add_flag("-U,--force-share", arguments->force_share,
                "read it also while somebody else writes");
  return [arguments] { return run_map(*arguments); };
}

}  // namespace spindle

// spindle-img check: looks for damage in an image, and repairs it.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/image_check.h"
#include "engine/image_opener.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/image_report.h"
#include "tools/img_options.h"

namespace spindle {
namespace {

// The exit codes of `qemu-img check`.
constexpr int kClean = 0;
constexpr int kCorrupt = 2;
constexpr int kLeaks = 3;
constexpr int kNotSupported = 63;

// Threads take some milliseconds to come and go, in which one thread checks as
// many clusters as this.
constexpr uint64_t kClustersWorthThreads = uint64_t{1} << 18;

struct CheckArguments {
  ImageArgument image;
  std::string repair;
  bool json = false;
  bool quiet = false;
  bool force_share = false;
  CacheMode cache = CacheMode::kWriteback;

  bool repairs() const { return !repair.empty(); }
};

double percent(uint64_t part, uint64_t whole) {
  return static_cast<double>(part) * 100.0 / static_cast<double>(whole);
}

void print_text(const CheckResult& result) {
  if (result.corruptions == 0 && result.leaks == 0 &&
      result.check_errors == 0) {
    std::printf("No errors were found on the image.\n");
  } else {
    if (result.corruptions != 0) {
      std::printf(
          "\n%llu errors were found on the image.\n"
          "Data may be corrupted, or further writes to the image may corrupt "
          "it.\n",
          static_cast<unsigned long long>(result.corruptions));
    }
    if (result.leaks != 0) {
      std::printf(
          "\n%llu leaked clusters were found on the image.\n"
          "This means waste of disk space, but no harm to data.\n",
          static_cast<unsigned long long>(result.leaks));
    }
    if (result.check_errors != 0) {
      std::printf("\n%llu internal errors have occurred during the check.\n",
                  static_cast<unsigned long long>(result.check_errors));
    }
  }
  if (result.total_clusters != 0 && result.allocated_clusters != 0) {
    std::printf(
        "%llu/%llu = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% "
        "compressed clusters\n",
        static_cast<unsigned long long>(result.allocated_clusters),
        static_cast<unsigned long long>(result.total_clusters),
        percent(result.allocated_clusters, result.total_clusters),
        percent(result.fragmented_clusters, result.allocated_clusters),
        percent(result.compressed_clusters, result.allocated_clusters));
  }
  if (result.image_end_offset != 0) {
    std::printf("Image end offset: %llu\n",
                static_cast<unsigned long long>(result.image_end_offset));
  }
}

// In the order in which QEMU prints the members; what is zero is left out.
void print_json_result(const CheckResult& result, const std::string& filename,
                       absl::string_view format) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  const auto add = [&json](const char* name, uint64_t value) {
    if (value != 0) json[name] = value;
  };
  add("image-end-offset", result.image_end_offset);
  add("compressed-clusters", result.compressed_clusters);
  add("total-clusters", result.total_clusters);
  add("corruptions", result.corruptions);
  add("corruptions-fixed", result.corruptions_fixed);
  json["check-errors"] = result.check_errors;
  add("leaks", result.leaks);
  add("leaks-fixed", result.leaks_fixed);
  add("allocated-clusters", result.allocated_clusters);
  json["filename"] = filename;
  json["format"] = std::string(format);
  add("fragmented-clusters", result.fragmented_clusters);
  std::printf("%s\n", print_json(json).c_str());
}

int fail_check(const absl::Status& status) {
  return fail(absl::StrCat("Check failed: ", std::strerror(errno_for(status))));
}

int fail_unsupported() {
  fail("This image format does not support checks");
  return kNotSupported;
}

// One worker less than there are processors: the caller works, too.  Null if
// that would make it no faster, or if no threads can be had.
std::unique_ptr<Executor> executor_for(const BlockDriver& driver) {
  const size_t processors = std::thread::hardware_concurrency();
  const BlockDriver* const file = driver.below();
  const uint64_t clusters =
      file == nullptr
          ? 0
          : file->length_bytes() /
                driver.info().cluster_size_bytes.value_or(kSectorSizeBytes);
  if (processors < 2 || clusters < kClustersWorthThreads) return nullptr;
  absl::StatusOr<std::unique_ptr<Executor>> made =
      create_executor({.width = processors - 1});
  return made.ok() ? *std::move(made) : nullptr;
}

int check_driver(BlockDriver& driver, const CheckArguments& arguments) {
  if (!driver.capabilities().has(Capability::kCheck)) {
    return fail_unsupported();
  }
  const std::unique_ptr<Executor> executor = executor_for(driver);
  CheckOptions options;
  options.fix_leaks = arguments.repairs();
  options.fix_errors = arguments.repair == "all";
  options.executor = executor.get();
  options.report = [](absl::string_view line) {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  };
  const bool human = !arguments.json;
  absl::StatusOr<CheckResult> result = driver.check(options);
  // Some formats can be checked, but not repaired.
  if (absl::IsUnimplemented(result.status())) return fail_unsupported();
  if (!result.ok()) return fail_check(result.status());
  if (result->corruptions_fixed != 0 || result->leaks_fixed != 0) {
    if (human && !arguments.quiet) {
      std::printf(
          "The following inconsistencies were found and repaired:\n\n"
          "    %llu leaked clusters\n"
          "    %llu corruptions\n\n"
          "Double checking the fixed image now...\n",
          static_cast<unsigned long long>(result->leaks_fixed),
          static_cast<unsigned long long>(result->corruptions_fixed));
    }
    const CheckResult repaired = *result;
    options.fix_leaks = options.fix_errors = false;
    result = driver.check(options);
    if (!result.ok()) return fail_check(result.status());
    result->leaks_fixed = repaired.leaks_fixed;
    result->corruptions_fixed = repaired.corruptions_fixed;
  }
  if (!arguments.quiet) {
    if (human) {
      print_text(*result);
    } else {
      print_json_result(*result, arguments.image.name, driver.format_name());
    }
  }
  if (result->check_errors != 0) return fail("Check failed");
  if (result->corruptions != 0) return kCorrupt;
  return result->leaks != 0 ? kLeaks : kClean;
}

int run(const CheckArguments& arguments, const ImageOpener& opener) {
  OpenOptions options = tool_open_options();
  options.read_only = !arguments.repairs();
  options.force_share = arguments.force_share;
  options.for_check = true;
  apply_cache_mode(arguments.cache, &options);
  const std::shared_ptr<BlockDriver> driver =
      open_or_complain(opener, arguments.image, options);
  if (driver == nullptr) return 1;
  const int code = check_driver(*driver, arguments);
  const absl::Status closed = driver->close();
  return closed.ok() ? code : fail_check(closed);
}

std::string repair_of(const std::string& text) {
  if (text == "leaks" || text == "all") return text;
  exit_with_usage(absl::StrCat(
      "Unknown option value for -r (expecting 'leaks' or 'all'): ", text));
}

}  // namespace

int run_check(int argc, char** argv) {
  CheckArguments arguments;
  std::optional<std::string> output;
  std::string cache = "writeback";
  OptionReader reader(argc, argv, "f:r:T:qU",
                      {{"format", required_argument, nullptr, 'f'},
                       {"repair", required_argument, nullptr, 'r'},
                       {"output", required_argument, nullptr, kOptionOutput},
                       {"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"force-share", no_argument, nullptr, 'U'}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 'r':
        arguments.repair = repair_of(reader.argument());
        break;
      case 'T':
        cache = reader.argument();
        break;
      case 'q':
        arguments.quiet = true;
        break;
      case 'U':
        arguments.force_share = true;
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
  const std::optional<CacheMode> mode = cache_mode_of(cache);
  if (!mode.has_value())
    return fail(absl::StrCat("Invalid source cache option: ", cache));
  arguments.cache = *mode;
  return run(arguments,
             ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
}

}  // namespace spindle

// spindle-img create: make a new image.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/image_name.h"
#include "engine/image_opener.h"
#include "engine/option_values.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"
#include "tools/new_file.h"

namespace spindle {
namespace {

struct CreateArguments {
  std::string filename;
  std::optional<uint64_t> size_bytes;
  std::string format = "raw";
  std::optional<std::string> backing_filename;
  std::optional<std::string> backing_format;
  OptionText options;
  bool quiet = false;
  bool unsafe_backing = false;
};

// In the order, and with the defaults, of the line that qemu-img prints.
struct PrintedOption {
  const char* name;
  const char* value_by_default;  // null: left out
};
constexpr PrintedOption kPrintedOfQcow2[] = {
    {"encryption", nullptr},
    {"encrypt.format", nullptr},
    {"encrypt.key-secret", nullptr},
    {"encrypt.cipher-alg", nullptr},
    {"encrypt.cipher-mode", nullptr},
    {"encrypt.ivgen-alg", nullptr},
    {"encrypt.ivgen-hash-alg", nullptr},
    {"encrypt.hash-alg", nullptr},
    {"encrypt.iter-time", nullptr},
    {"cluster_size", "65536"},
    {"extended_l2", "off"},
    {"preallocation", nullptr},
    {"compression_type", "zlib"},
    {"size", nullptr},
    {"compat", nullptr},
    {"backing_file", nullptr},
    {"backing_fmt", nullptr},
    {"data_file", nullptr},
    {"data_file_raw", nullptr},
    {"lazy_refcounts", "off"},
    {"refcount_bits", "16"},
};
constexpr PrintedOption kPrintedOfQcow[] = {
    {"size", nullptr},
    {"backing_file", nullptr},
    {"backing_fmt", nullptr},
    {"encryption", nullptr},
    {"encrypt.format", nullptr},
    {"encrypt.key-secret", nullptr},
    {"nocow", nullptr},
    {"preallocation", nullptr},
    {"extent_size_hint", nullptr},
};

constexpr PrintedOption kPrintedOfVdi[] = {
    {"size", nullptr},
    {"static", "off"},
    {"preallocation", nullptr},
    {"nocow", nullptr},
    {"extent_size_hint", nullptr},
};
constexpr PrintedOption kPrintedOfOthers[] = {
    {"size", nullptr},           {"preallocation", nullptr},
    {"nocow", nullptr},          {"extent_size_hint", nullptr},
    {"key-secret", nullptr},     {"cipher-alg", nullptr},
    {"cipher-mode", nullptr},    {"ivgen-alg", nullptr},
    {"ivgen-hash-alg", nullptr}, {"hash-alg", nullptr},
    {"iter-time", nullptr},
};

// How the hint begins that qemu-img ends without a line feed.
constexpr char kDetectedFormat[] = "Detected format of ";

std::string take_option(const std::string& name, OptionMap* options) {
  auto node = options->extract(name);
  return node.empty() ? std::string() : std::move(node.mapped());
}

bool lists(const std::vector<OptionHelp>& options, absl::string_view name) {
  for (const OptionHelp& option : options) {
    if (option.name == name) return true;
  }
  return false;
}

absl::Status read_size(const CreateArguments& arguments,
                       CreateOptions* create) {
  const std::string text = take_option("size", &create->options);
  create->size_bytes = arguments.size_bytes;
  if (text.empty()) return absl::OkStatus();
  if (create->size_bytes.has_value()) {
    return absl::InvalidArgumentError(
        "The image size must be specified only once");
  }
  const absl::StatusOr<uint64_t> size = parse_size_parameter("size", text);
  if (size.ok()) create->size_bytes = *size;
  return size.status();
}

absl::Status read_backing(const CreateArguments& arguments,
                          const std::vector<OptionHelp>& known,
                          CreateOptions* create) {
  const auto refuse = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, " not supported for file format '", arguments.format, "'"));
  };
  if (arguments.backing_filename.has_value()) {
    if (!lists(known, "backing_file")) return refuse("Backing file");
    if (arguments.backing_filename->empty()) {
      return absl::InvalidArgumentError(
          "Expected backing file name, got empty string");
    }
  }
  if (arguments.backing_format.has_value() && !lists(known, "backing_fmt"))
    return refuse("Backing file format");
  const std::string name = take_option("backing_file", &create->options);
  const std::string format = take_option("backing_fmt", &create->options);
  create->backing_filename = arguments.backing_filename.value_or(name);
  create->backing_format = arguments.backing_format.value_or(format);
  create->unsafe_backing = arguments.unsafe_backing;
  if (!create->backing_filename.empty() &&
      create->backing_filename == arguments.filename) {
    return absl::InvalidArgumentError(
        "Error: Trying to create an image with the same filename as the "
        "backing file");
  }
  return absl::OkStatus();
}

// An overlay is as long as what it lies over, unless the user says otherwise.
absl::Status look_at_backing(const CreateArguments& arguments,
                             const ImageOpener& opener, CreateOptions* create) {
  OpenOptions options;
  options.read_only = true;
  const absl::StatusOr<std::shared_ptr<BlockDriver>> backing = opener.open(
      resolve_backing_filename(NameSyntax::kQemu, arguments.filename,
                               create->backing_filename),
      create->backing_format, options);
  if (!backing.ok()) {
    return with_qemu_words(backing.status(),
                           absl::StrCat(qemu_words(backing.status()),
                                        "\nCould not open backing image."));
  }
  if (create->backing_format.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Backing file specified without backing format\n",
                     kDetectedFormat, (*backing)->format_name(), "."));
  }
  // In whole sectors, as QEMU counts.
  if (!create->size_bytes.has_value()) {
    create->size_bytes = align_up((*backing)->length_bytes(), kSectorSizeBytes);
  }
  return (*backing)->close();
}

absl::Status complete_backing(const CreateArguments& arguments,
                              const ImageOpener& opener,
                              CreateOptions* create) {
  if (!create->backing_filename.empty()) {
    if (!create->unsafe_backing) {
      absl::Status status = look_at_backing(arguments, opener, create);
      if (!status.ok()) return status;
    } else if (create->backing_format.empty()) {
      return absl::InvalidArgumentError(
          "Backing file specified without backing format");
    }
  }
  if (create->size_bytes.has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError("Image creation needs a size parameter");
}

// "cluster_size=64k" is printed as the number that it means.
std::string printed_value(const std::string& name, const std::string& value) {
  if (name != "cluster_size" && name != "extent_size_hint")
    return escape_option_value(value);
  const std::optional<uint64_t> size = parse_size(value);
  return size.has_value() ? absl::StrCat(*size) : escape_option_value(value);
}

absl::Span<const PrintedOption> printed_options(const std::string& format) {
  if (format == "qcow2") return kPrintedOfQcow2;
  if (format == "qcow") return kPrintedOfQcow;
  if (format == "vdi") return kPrintedOfVdi;
  return kPrintedOfOthers;
}

void print_formatting(const CreateArguments& arguments,
                      const CreateOptions& create) {
  OptionMap values = create.options;
  values["size"] = absl::StrCat(create.size_bytes.value_or(0));
  if (!create.backing_filename.empty())
    values["backing_file"] = create.backing_filename;
  if (!create.backing_format.empty())
    values["backing_fmt"] = create.backing_format;
  std::string line = absl::StrCat("Formatting '", arguments.filename,
                                  "', fmt=", arguments.format);
  for (const PrintedOption& option : printed_options(arguments.format)) {
    const auto found = values.find(option.name);
    if (found != values.end()) {
      absl::StrAppend(&line, " ", option.name, "=",
                      printed_value(option.name, found->second));
    } else if (option.value_by_default != nullptr) {
      absl::StrAppend(&line, " ", option.name, "=", option.value_by_default);
    }
  }
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// In QEMU's words; only without -u has the format been used already.
absl::Status check_backing_format(const CreateOptions& create) {
  const std::string& name = create.backing_format;
  const DriverRegistry& registry = builtin_drivers();
  if (name.empty() || registry.find_format(name) != nullptr ||
      registry.find_protocol(name) != nullptr ||
      registry.find_filter(name) != nullptr) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "Parameter 'backing-fmt' does not accept value '", name, "'"));
}

absl::Status create_or_remove(const CreateArguments& arguments,
                              const ImageOpener& opener,
                              const CreateOptions& create,
                              const std::string& path) {
  absl::Status status =
      opener.check_create_options(arguments.filename, arguments.format, create);
  if (!status.ok()) return status;
  NewFile file(path);
  status = opener.create(arguments.filename, arguments.format, create);
  // A raw image is its file: qemu-img leaves it, whatever became of it.
  if (status.ok() || arguments.format == "raw") file.keep();
  return status;
}

absl::Status create_image(const CreateArguments& arguments,
                          const ImageOpener& opener) {
  const ImageFormat* const format =
      builtin_drivers().find_format(arguments.format);
  if (format == nullptr) {
    const bool exists =
        builtin_drivers().find_filter(arguments.format) != nullptr;
    return absl::InvalidArgumentError(
        exists ? absl::StrCat("Format driver '", arguments.format,
                              "' does not support image creation")
               : absl::StrCat("Unknown file format '", arguments.format, "'"));
  }
  const absl::StatusOr<std::string> path =
      opener.new_file_name(arguments.filename);
  if (!path.ok()) return path.status();
  const std::vector<OptionHelp> known = all_create_options(*format);
  absl::StatusOr<OptionMap> options =
      typed_options(arguments.options.text(), known);
  if (!options.ok()) return options.status();
  CreateOptions create;
  create.options = *std::move(options);
  absl::Status status = read_size(arguments, &create);
  if (status.ok()) status = read_backing(arguments, known, &create);
  if (status.ok()) status = complete_backing(arguments, opener, &create);
  if (!status.ok()) return status;
  if (!arguments.quiet) print_formatting(arguments, create);
  status = check_backing_format(create);
  if (!status.ok()) return status;
  return create_or_remove(arguments, opener, create, *path);
}

int say_failure(const std::string& words) {
  const size_t hint = words.find(absl::StrCat("\n", kDetectedFormat));
  if (hint == std::string::npos) return fail(words);
  const int code = fail(words.substr(0, hint));
  std::fputs(words.c_str() + hint + 1, stderr);
  return code;
}

}  // namespace

int run_create(int argc, char** argv) {
  CreateArguments arguments;
  OptionReader reader(argc, argv, "F:b:f:o:qu", {});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'F':
        arguments.backing_format = reader.argument();
        break;
      case 'b':
        arguments.backing_filename = reader.argument();
        break;
      case 'f':
        arguments.format = reader.argument();
        break;
      case 'o':
        if (!arguments.options.add(reader.argument())) return 1;
        break;
      case 'q':
        arguments.quiet = true;
        break;
      case 'u':
        arguments.unsafe_backing = true;
        break;
      default:
        break;
    }
  }
  const std::vector<std::string>& operands = reader.operands();
  if (arguments.options.asks_for_help())
    return print_create_help(arguments.format, !operands.empty());
  if (operands.empty()) exit_with_usage("Expecting image file name");
  arguments.filename = operands[0];
  if (operands.size() > 1)
    arguments.size_bytes = size_or_exit("image size", operands[1].c_str());
  if (operands.size() > 2)
    exit_with_usage(absl::StrCat("Unexpected argument: ", operands[2]));
  const absl::Status status = create_image(
      arguments, ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
  if (status.ok()) return 0;
  return say_failure(
      absl::StrCat(arguments.filename, ": ", qemu_words(status)));
}

}  // namespace spindle

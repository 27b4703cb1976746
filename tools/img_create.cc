// spindle-img create: make a new image.
#include <CLI/CLI.hpp>
#include <csignal>
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
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/option_values.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/new_file.h"
#include "tools/object_option.h"

namespace spindle {
namespace {

struct CreateArguments {
  std::string filename;
  std::string size;
  std::string format = "raw";
  std::string backing_filename;
  std::string backing_format;
  std::vector<std::string> options;
  std::vector<std::string> objects;
  bool quiet = false;
  bool unsafe_backing = false;
  bool backing_given = false;
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

// Moves what the command line or "-o" says about `name` out of `create`.
std::string take_option(const std::string& name, CreateOptions* create) {
  auto node = create->options.extract(name);
  return node.empty() ? std::string() : std::move(node.mapped());
}

absl::Status read_size(const CreateArguments& arguments,
                       CreateOptions* create) {
  std::string text = take_option("size", create);
  if (!arguments.size.empty()) {
    if (!text.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          arguments.filename, ": The image size must be specified only once"));
    }
    text = arguments.size;
  }
  if (text.empty()) return absl::OkStatus();
  const absl::StatusOr<uint64_t> size = parse_image_size(text);
  if (!size.ok()) return size.status();
  create->size_bytes = *size;
  return absl::OkStatus();
}

absl::Status read_backing(const CreateArguments& arguments,
                          CreateOptions* create) {
  const std::string name = take_option("backing_file", create);
  const std::string format = take_option("backing_fmt", create);
  create->backing_filename =
      arguments.backing_given ? arguments.backing_filename : name;
  create->backing_format =
      arguments.backing_format.empty() ? format : arguments.backing_format;
  create->unsafe_backing = arguments.unsafe_backing;
  if (arguments.backing_given && create->backing_filename.empty()) {
    return absl::InvalidArgumentError(
        "Expected backing file name, got empty string");
  }
  if (create->backing_filename.empty()) {
    if (create->backing_format.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "Backing format cannot be used without backing file");
  }
  if (create->backing_format.empty()) {
    return absl::InvalidArgumentError(
        "Backing file specified without backing format");
  }
  if (create->backing_filename == arguments.filename) {
    return absl::InvalidArgumentError(
        "Error: Trying to create an image with the same filename as the "
        "backing file");
  }
  return absl::OkStatus();
}

// An overlay is as long as what it lies over, unless the user says otherwise.
absl::Status learn_size(const CreateArguments& arguments,
                        const ImageOpener& opener, CreateOptions* create) {
  if (create->size_bytes.has_value()) return absl::OkStatus();
  if (create->backing_filename.empty() || create->unsafe_backing) {
    return absl::InvalidArgumentError("Image creation needs a size parameter");
  }
  OpenOptions options;
  options.read_only = true;
  const absl::StatusOr<std::shared_ptr<BlockDriver>> backing = opener.open(
      resolve_backing_filename(arguments.filename, create->backing_filename),
      create->backing_format, options);
  if (!backing.ok()) {
    return absl::Status(
        backing.status().code(),
        absl::StrCat("Could not open '", create->backing_filename,
                     "': ", backing.status().message(),
                     "\nCould not open backing image."));
  }
  // In whole sectors, as QEMU counts.
  create->size_bytes = align_up((*backing)->length_bytes(), kSectorSizeBytes);
  return (*backing)->close();
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
  if (format == "vdi") return kPrintedOfVdi;
  return kPrintedOfOthers;
}

void print_formatting(const CreateArguments& arguments,
                      const CreateOptions& create) {
  OptionMap values = create.options;
  values["size"] = absl::StrCat(create.size_bytes.value_or(0));
  if (!create.backing_filename.empty()) {
    values["backing_file"] = create.backing_filename;
    values["backing_fmt"] = create.backing_format;
  }
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

int print_option_help(const CreateArguments& arguments,
                      const ImageFormat& format) {
  std::printf("Supported %s options:\n%s", arguments.format.c_str(),
              describe_options(format.create_options()).c_str());
  return 0;
}

absl::Status check_names(const CreateOptions& create, const ImageFormat& format,
                         const DriverRegistry& registry) {
  std::vector<OptionHelp> known = format.create_options();
  for (const StorageProtocol* protocol : registry.protocols) {
    for (OptionHelp& option : protocol->create_options())
      known.push_back(std::move(option));
  }
  for (const auto& [name, value] : create.options) {
    bool found = false;
    for (const OptionHelp& option : known) found = found || option.name == name;
    if (!found)
      return absl::InvalidArgumentError(
          absl::StrCat("Invalid parameter '", name, "'"));
  }
  return absl::OkStatus();
}

absl::Status create_or_remove(const CreateArguments& arguments,
                              const ImageOpener& opener,
                              const CreateOptions& create) {
  // A limit on the size of files is an error like any other: the process must
  // live to clean up.
  std::signal(SIGXFSZ, SIG_IGN);
  NewFile file(arguments.filename);
  absl::Status status =
      opener.create(arguments.filename, arguments.format, create);
  if (status.ok()) file.keep();
  return status;
}

int run_create(const CreateArguments& arguments) {
  const DriverRegistry& registry = builtin_drivers();
  const ImageFormat* format = registry.find_format(arguments.format);
  if (format == nullptr) {
    return fail(absl::StrCat(arguments.filename, ": Unknown file format '",
                             arguments.format, "'"));
  }
  CreateOptions create;
  for (const std::string& text : arguments.options) {
    const OptionList list = parse_option_list(text);
    if (list.help) return print_option_help(arguments, *format);
    for (const auto& [name, value] : list.options) create.options[name] = value;
  }
  if (arguments.filename.empty()) return fail("Expecting image file name");

  const auto secrets = load_secrets(arguments.objects);
  if (!secrets.ok()) return fail(secrets.status().message());
  const ImageOpener opener(registry, tool_policy(*secrets));
  absl::Status status = read_size(arguments, &create);
  if (!status.ok()) return fail(status.message());
  status = read_backing(arguments, &create);
  if (status.ok()) status = check_names(create, *format, registry);
  if (status.ok() && !create.backing_filename.empty() &&
      !format->supports_backing()) {
    status = absl::InvalidArgumentError(absl::StrCat(
        "Backing file not supported for file format '", arguments.format, "'"));
  }
  if (status.ok()) status = learn_size(arguments, opener, &create);
  if (status.ok()) {
    if (!arguments.quiet) print_formatting(arguments, create);
    status = create_or_remove(arguments, opener, create);
  }
  if (!status.ok())
    return fail(absl::StrCat(arguments.filename, ": ", status.message()));
  return 0;
}

}  // namespace

Command add_create_command(CLI::App* app) {
  auto arguments = std::make_shared<CreateArguments>();
  CLI::App* create = app->add_subcommand("create", "Make a new image");
  create->add_option("filename", arguments->filename, "the new image");
  create->add_option(
      "size", arguments->size,
      "its length; suffixes k, M, G, T, P, E; an overlay's default is that of "
      "its backing file");
  create->add_option("-f", arguments->format, "its format (raw)");
  add_object_option(create, &arguments->objects);
  CLI::Option* backing =
      create->add_option("-b", arguments->backing_filename, "its backing file");
  create->add_option("-F", arguments->backing_format,
                     "the backing file's format");
  create
      ->add_option("-o", arguments->options,
                   "options as name=value,...; \"help\" lists them")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  create->add_flag("-q", arguments->quiet, "print nothing");
  create->add_flag("-u", arguments->unsafe_backing,
                   "do not open the backing file");
  return [arguments, backing] {
    arguments->backing_given = backing->count() > 0;
    return run_create(*arguments);
  };
}

}  // namespace spindle

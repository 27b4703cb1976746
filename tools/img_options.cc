#include "tools/img_options.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/option_values.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/img_help.h"

namespace spindle {
namespace {

[[noreturn]] void leave(int code) {
  std::fflush(stdout);
  std::exit(code);
}

}  // namespace

void exit_with_usage(absl::string_view message) {
  exit_with(absl::StrCat(message, "\nTry '", program_name(),
                         " --help' for more information"));
}

void exit_with(absl::string_view message) { leave(fail(message)); }

OptionReader::OptionReader(int argc, char** argv, absl::string_view letters,
                           const std::vector<option>& longs,
                           MisuseAnswer answer)
    : argc_(argc),
      argv_(argv),
      // Without the colon getopt says what is wrong, and then returns '?'.
      letters_(absl::StrCat(answer == MisuseAnswer::kUsage ? ":" : "", "h",
                            letters)),
      longs_(longs),
      answer_(answer) {
  const option shared[] = {
      {"help", no_argument, nullptr, 'h'},
      {"object", required_argument, nullptr, kOptionObject},
      {"restrict", no_argument, nullptr, kOptionRestrict},
      {nullptr, 0, nullptr, 0},
  };
  longs_.insert(longs_.end(), std::begin(shared), std::end(shared));
  optind = 0;  // anew
}

std::optional<int> OptionReader::next() {
  for (;;) {
    const int found =
        ::getopt_long(argc_, argv_, letters_.c_str(), longs_.data(), nullptr);
    switch (found) {
      case -1:
        operands_.assign(argv_ + optind, argv_ + argc_);
        return std::nullopt;
      case ':':
        exit_with_usage(absl::StrCat("missing argument for option '",
                                     argv_[optind - 1], "'"));
      case '?':
        if (answer_ == MisuseAnswer::kHelp) {
          print_help();
          leave(0);
        }
        exit_with_usage(
            absl::StrCat("unrecognized option '", argv_[optind - 1], "'"));
      case 'h':
        print_help();
        leave(0);
      case kOptionObject:
        add_object(optarg);
        break;
      case kOptionImageOpts:
        image_opts_ = true;
        break;
      case kOptionRestrict:
        restrict_images();
        break;
      default:
        return found;
    }
  }
}

void OptionReader::add_object(const std::string& text) {
  if (secrets_ == nullptr) secrets_ = std::make_shared<SecretStore>();
  const absl::Status status = secrets_->add_object(text);
  if (!status.ok()) exit_with(qemu_words(status));
}

bool is_json_output(const std::optional<std::string>& output) {
  if (!output.has_value() || *output == "human") return false;
  if (*output == "json") return true;
  exit_with("--output must be used with human or json as argument.");
}

std::optional<CacheMode> cache_mode_of(absl::string_view name) {
  const absl::StatusOr<CacheMode> mode =
      parse_cache_mode(name == "off" ? "none" : name);
  if (!mode.ok()) return std::nullopt;
  return *mode;
}

uint64_t size_or_exit(absl::string_view what, const char* text) {
  const absl::StatusOr<uint64_t> size = parse_size_named(what, text);
  if (!size.ok()) exit_with(size.status().message());
  return *size;
}

bool OptionText::add(absl::string_view text) {
  size_t commas = 0;
  while (commas < text.size() && text[text.size() - 1 - commas] == ',')
    ++commas;
  if (text.empty() || text[0] == ',' || commas % 2 != 0) {
    fail(absl::StrCat("Invalid option list: ", text));
    return false;
  }
  absl::StrAppend(&text_, text_.empty() ? "" : ",", text);
  return true;
}

absl::StatusOr<OptionMap> typed_options(absl::string_view text,
                                        const std::vector<OptionHelp>& known) {
  OptionMap options;
  for (const OptionItem& item : split_option_list(text)) {
    if (item.name == "id") continue;  // QEMU's name for the list itself
    const auto option = std::find_if(
        known.begin(), known.end(),
        [&item](const OptionHelp& one) { return one.name == item.name; });
    // "nocow" is a name of its own.
    const auto whole = std::find_if(
        known.begin(), known.end(),
        [&item](const OptionHelp& one) { return one.name == item.short_form; });
    if (whole != known.end()) {
      options[whole->name] = "on";
      continue;
    }
    if (option == known.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "Invalid parameter '",
          item.short_form.empty() ? item.name : item.short_form, "'"));
    }
    options[item.name] = item.value;
  }
  for (const auto& [name, value] : options) {
    const auto option =
        std::find_if(known.begin(), known.end(),
                     [&](const OptionHelp& one) { return one.name == name; });
    absl::Status status;
    if (option->type == "<size>")
      status = parse_size_parameter(name, value).status();
    if (option->type == "<num>")
      status = parse_number_option(name, value).status();
    if (absl::StartsWith(option->type, "<bool"))
      status = parse_bool_option(name, value).status();
    if (!status.ok()) return status;
  }
  return options;
}

std::vector<OptionHelp> all_create_options(const ImageFormat& format) {
  std::vector<OptionHelp> known = format.create_options();
  const StorageProtocol* const file = builtin_drivers().find_protocol("file");
  for (OptionHelp& option : file->create_options()) {
    const bool is_there = std::any_of(
        known.begin(), known.end(),
        [&option](const OptionHelp& one) { return one.name == option.name; });
    if (!is_there) known.push_back(std::move(option));
  }
  std::sort(
      known.begin(), known.end(),
      [](const OptionHelp& a, const OptionHelp& b) { return a.name < b.name; });
  return known;
}

int print_create_help(const std::string& format, bool with_protocol) {
  const DriverRegistry& registry = builtin_drivers();
  const ImageFormat* const found = registry.find_format(format);
  if (found == nullptr) {
    const bool exists = registry.find_filter(format) != nullptr;
    return fail(exists ? absl::StrCat("Format driver '", format,
                                      "' does not support image creation")
                       : absl::StrCat("Unknown file format '", format, "'"));
  }
  if (with_protocol) {
    std::printf("Supported options:\n%s",
                describe_options(all_create_options(*found)).c_str());
  } else {
    std::printf(
        "Supported %s options:\n%s\n"
        "The protocol level may support further options.\n"
        "Specify the target filename to include those options.\n",
        format.c_str(), describe_options(found->create_options()).c_str());
  }
  return 0;
}

}  // namespace spindle

// spindle-img info: what an image's own metadata says.
#include <cstdio>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_report.h"
#include "tools/img_options.h"

namespace spindle {
namespace {

struct InfoArguments {
  ImageArgument image;
  bool json = false;
  bool backing_chain = false;
  bool force_share = false;
};

void print_text(const std::vector<ImageReport>& reports) {
  const char* separator = "";
  for (const ImageReport& report : reports) {
    std::printf("%s%s", separator, to_text(report).c_str());
    separator = "\n";
  }
}

void print_json_reports(const std::vector<ImageReport>& reports, bool as_list) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const ImageReport& report : reports) json.push_back(to_json(report));
  std::printf("%s\n", print_json(as_list ? json : json[0]).c_str());
}

int run(const InfoArguments& arguments, const ImageOpener& opener) {
  if (!states_format_once(arguments.image)) return 1;
  std::vector<ImageReport> reports;
  std::set<std::string> seen;
  ImageArgument next = arguments.image;
  do {
    if (!seen.insert(next.name).second) {
      return fail(absl::StrCat("Backing file '", next.name,
                               "' creates an infinite loop."));
    }
    absl::StatusOr<ImageReport> report =
        make_report(opener, next, arguments.force_share);
    if (!report.ok()) return fail_to_open(next.name, report.status());
    next = {.name = report->full_backing_filename,
            .format = report->backing_format};
    reports.push_back(*std::move(report));
  } while (arguments.backing_chain && !next.name.empty());
  if (arguments.json) {
    print_json_reports(reports, arguments.backing_chain);
  } else {
    print_text(reports);
  }
  return 0;
}

}  // namespace

int run_info(int argc, char** argv) {
  InfoArguments arguments;
  std::optional<std::string> output;
  OptionReader reader(
      argc, argv, "f:U",
      {{"format", required_argument, nullptr, 'f'},
       {"output", required_argument, nullptr, kOptionOutput},
       {"backing-chain", no_argument, nullptr, kOptionBackingChain},
       {"image-opts", no_argument, nullptr, kOptionImageOpts},
       {"force-share", no_argument, nullptr, 'U'}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 'U':
        arguments.force_share = true;
        break;
      case kOptionOutput:
        output = reader.argument();
        break;
      case kOptionBackingChain:
        arguments.backing_chain = true;
        break;
      default:
        break;
    }
  }
  arguments.image.image_opts = reader.image_opts();
  if (reader.operands().size() != 1)
    exit_with_usage("Expecting one image file name");
  arguments.image.name = reader.operands()[0];
  arguments.json = is_json_output(output);
  const ImageOpener opener(builtin_drivers(), tool_policy(reader.secrets()));
  return run(arguments, opener);
}

}  // namespace spindle

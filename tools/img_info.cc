// spindle-img info: what an image's own metadata says.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_report.h"

namespace spindle {
namespace {

struct InfoArguments {
  std::string filename;
  std::string output = "human";
  bool backing_chain = false;
  ReportOptions report;
};

void print_text(const std::vector<ImageReport>& reports) {
  const char* separator = "";
  for (const ImageReport& report : reports) {
    std::printf("%s%s", separator, to_text(report).c_str());
    separator = "\n";
  }
}

int run_info(const InfoArguments& arguments) {
  if (arguments.output != "human" && arguments.output != "json") {
    return fail("--output must be used with human or json as argument.");
  }
  std::vector<ImageReport> reports;
  if (arguments.backing_chain) {
    absl::StatusOr<std::vector<ImageReport>> chain = make_chain_report(
        builtin_drivers(), arguments.filename, arguments.report);
    if (!chain.ok()) return fail(chain.status().message());
    reports = *std::move(chain);
  } else {
    absl::StatusOr<ImageReport> report =
        make_report(builtin_drivers(), arguments.filename, arguments.report);
    if (!report.ok()) return fail(report.status().message());
    reports.push_back(*std::move(report));
  }
  if (arguments.output == "human") {
    print_text(reports);
    return 0;
  }
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const ImageReport& report : reports) json.push_back(to_json(report));
  std::printf("%s\n",
              print_json(arguments.backing_chain ? json : json[0]).c_str());
  return 0;
}

}  // namespace

Command add_info_command(CLI::App* app) {
  auto arguments = std::make_shared<InfoArguments>();
  CLI::App* info =
      app->add_subcommand("info", "Say what an image's own metadata says");
  info->add_option("filename", arguments->filename, "the image")->required();
  info->add_option("-f", arguments->report.format,
                   "its format; guessed if not stated");
  info->add_option("--output", arguments->output, "human or json");
  info->add_flag("--backing-chain", arguments->backing_chain,
                 "go on with the backing file, and with its own");
  info->add_flag("-U,--force-share", arguments->report.force_share,
                 "read it also while somebody else writes");
  return [arguments] { return run_info(*arguments); };
}

}  // namespace spindle

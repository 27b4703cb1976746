#include "tests/formats/qcow2/check_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/byte_channel.h"
#include "formats/qcow2/check.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {

CheckReport check_with_qemu(const std::string& path, const std::string& repair,
                            int seconds) {
  CheckReport report;
  std::vector<std::string> command = {
      "timeout", absl::StrCat(seconds), "qemu-img", "check", "-f",
      "qcow2",   "--output=json"};
  if (!repair.empty()) command.insert(command.end(), {"-r", repair});
  command.push_back(path);
  const auto run = run_tool(command);
  EXPECT_TRUE(run.ok()) << run.status();
  if (!run.ok()) return report;
  report.exit_code = run->exit_code;
  const size_t begin = run->output.find("{\n");
  const size_t end = run->output.find("\n}\n");
  report.failed = begin == std::string::npos || end == std::string::npos;
  const std::string text =
      report.failed ? "{}" : run->output.substr(begin, end + 2 - begin);
  const auto json = nlohmann::json::parse(text, nullptr, false);
  const auto number = [&json](const char* name) {
    return json.value(name, uint64_t{0});
  };
  report.result.check_errors = number("check-errors");
  report.result.corruptions = number("corruptions");
  report.result.leaks = number("leaks");
  report.result.corruptions_fixed = number("corruptions-fixed");
  report.result.leaks_fixed = number("leaks-fixed");
  report.result.image_end_offset = number("image-end-offset");
  report.result.total_clusters = number("total-clusters");
  report.result.allocated_clusters = number("allocated-clusters");
  report.result.fragmented_clusters = number("fragmented-clusters");
  report.result.compressed_clusters = number("compressed-clusters");
  // The two streams arrive in any order.
  const std::string rest = report.failed ? run->output
                                         : run->output.substr(0, begin) +
                                               run->output.substr(end + 3);
  for (absl::string_view line : absl::StrSplit(rest, '\n', absl::SkipEmpty())) {
    absl::ConsumePrefix(&line, kLeakWarning);
    if (!line.empty() && !absl::StartsWith(line, "qemu-img: "))
      report.lines.push_back(std::string(line));
  }
  return report;
}

CheckReport check_with_ours(std::shared_ptr<BlockDriver> file,
                            CheckOptions options) {
  CheckReport report;
  options.report = [&report](absl::string_view lines) {
    for (absl::string_view line : absl::StrSplit(lines, '\n'))
      report.lines.push_back(std::string(line));
  };
  ByteChannel channel(std::move(file));
  const auto result = qcow2::check_file(&channel, options);
  report.failed = !result.ok();
  if (result.ok()) report.result = *result;
  if (!result.ok())
    report.lines.push_back(std::string(result.status().message()));
  report.exit_code = exit_code_for(report);
  return report;
}

CheckReport repair_with_ours(const std::shared_ptr<BlockDriver>& file,
                             const std::string& repair) {
  CheckOptions options;
  options.fix_leaks = !repair.empty();
  options.fix_errors = repair == "all";
  CheckReport report = check_with_ours(file, options);
  const CheckResult first = report.result;
  if (report.failed || (first.corruptions_fixed == 0 && first.leaks_fixed == 0))
    return report;
  const CheckReport second = check_with_ours(file, CheckOptions());
  report.failed = second.failed;
  report.result = second.result;
  report.result.corruptions_fixed = first.corruptions_fixed;
  report.result.leaks_fixed = first.leaks_fixed;
  report.lines.insert(report.lines.end(), second.lines.begin(),
                      second.lines.end());
  report.exit_code = exit_code_for(report);
  return report;
}

int exit_code_for(const CheckReport& report) {
  if (report.failed || report.result.check_errors != 0) return 1;
  if (report.result.corruptions != 0) return 2;
  return report.result.leaks != 0 ? 3 : 0;
}

std::string counts_of(const CheckReport& report) {
  if (report.failed) return "failed";
  const CheckResult& r = report.result;
  return absl::StrCat("errors ", r.check_errors, ", corruptions ",
                      r.corruptions, ", leaks ", r.leaks, ", end ",
                      r.image_end_offset, ", clusters ", r.total_clusters, " ",
                      r.allocated_clusters, " ", r.fragmented_clusters, " ",
                      r.compressed_clusters);
}

std::string fixes_of(const CheckReport& report) {
  if (report.failed) return "failed";
  return absl::StrCat("corruptions fixed ", report.result.corruptions_fixed,
                      ", leaks fixed ", report.result.leaks_fixed);
}

bool is_clean(const CheckReport& report) {
  return !report.failed && report.result.check_errors == 0 &&
         report.result.corruptions == 0 && report.result.leaks == 0;
}

}  // namespace spindle::testing

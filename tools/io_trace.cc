#include "tools/io_trace.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "tools/cli_text.h"
#include "tools/image_opts.h"

namespace spindle {
namespace {

// `where`: the program, and perhaps a line of a file.
void note_pattern(const std::string& where, absl::string_view pattern) {
  absl::ConsumePrefix(&pattern, "-");
  // One that may fit none is nobody's mistake.
  if (absl::StrContains(pattern, "*")) return;
  fail_as(where,
          absl::StrCat("warning: trace event '", pattern, "' does not exist"));
}

bool read_patterns(const std::string& filename) {
  std::ifstream file(filename);
  if (!file) {
    fail_as(absl::StrCat(program_name(), ":", filename), std::strerror(errno));
    return false;
  }
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    // Blanks belong to the name.
    if (line.empty() || line[0] == '#') continue;
    note_pattern(absl::StrCat(program_name(), ":", filename, ":", number),
                 line);
  }
  return true;
}

// Nothing will be in it.
bool make_log_file(const std::string& filename) {
  const std::ofstream file(filename);
  if (file) return true;
  fail(absl::StrCat("Error opening logfile ", filename, ": ",
                    std::strerror(errno)));
  return false;
}

}  // namespace

TraceOutcome apply_trace_option(const std::string& text) {
  const OptionMap options =
      parse_image_opts(text, ShortForms::kWarnedOf, "enable");
  for (const auto& [name, value] : options) {
    if (name != "enable" && name != "events" && name != "file") {
      fail(absl::StrCat("Invalid parameter '", name, "'"));
      return TraceOutcome::kWrong;
    }
  }
  if (const auto pattern = options.find("enable"); pattern != options.end()) {
    if (pattern->second == "help" || pattern->second == "?")
      return TraceOutcome::kHelp;
    note_pattern(program_name(), pattern->second);
  }
  const auto events = options.find("events");
  if (events != options.end() && !read_patterns(events->second))
    return TraceOutcome::kWrong;
  const auto file = options.find("file");
  const bool good = file == options.end() || make_log_file(file->second);
  return good ? TraceOutcome::kDone : TraceOutcome::kWrong;
}

}  // namespace spindle

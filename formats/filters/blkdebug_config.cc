#include "formats/filters/blkdebug_config.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/checked_math.h"
#include "engine/errors.h"

namespace spindle {
namespace {

constexpr absl::string_view kInjectError = "inject-error";
constexpr absl::string_view kSetState = "set-state";
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 20;

absl::Status invalid(absl::string_view what, absl::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat("blkdebug: ", what, " '", value, "'"));
}

// A number that fits into an int.
void take_int(FilterOptions* options, const std::string& name, int* value) {
  uint64_t number = static_cast<uint64_t>(*value);
  options->take_number(name, &number);
  if (number > uint64_t{std::numeric_limits<int>::max()}) {
    options->note(
        invalid(absl::StrCat(name, " is out of range:"), absl::StrCat(number)));
    return;
  }
  *value = static_cast<int>(number);
}

BlkdebugEvent take_event(FilterOptions* options) {
  const std::optional<std::string> name = options->take_text("event");
  if (!name.has_value()) {
    options->note(
        absl::InvalidArgumentError("blkdebug: Missing event name for rule"));
    return {};
  }
  const std::optional<BlkdebugEvent> event = find_blkdebug_event(*name);
  if (!event.has_value()) options->note(invalid("Invalid event name", *name));
  return event.value_or(BlkdebugEvent{});
}

void take_probability(FilterOptions* options, double* probability) {
  const std::optional<std::string> text = options->take_text("probability");
  if (!text.has_value()) return;
  if (!absl::SimpleAtod(*text, probability) ||
      !(*probability >= 0 && *probability <= 1)) {
    options->note(invalid("probability is not between 0 and 1:", *text));
  }
}

absl::Status add_error(const OptionMap& section, BlkdebugConfig* config) {
  FilterOptions options(kInjectError, section);
  BlkdebugInjectError rule;
  rule.event = take_event(&options);
  take_int(&options, "state", &rule.state);
  take_int(&options, "errno", &rule.error_number);
  options.take_bool("once", &rule.once);
  // A request here has no loop that the error could wait for.
  bool immediately = false;
  options.take_bool("immediately", &immediately);
  take_probability(&options, &rule.probability);
  if (const auto name = options.take_text("iotype")) {
    rule.io = find_blkdebug_io(*name);
    if (!rule.io.has_value()) options.note(invalid("Invalid iotype", *name));
  }
  if (const auto text = options.take_text("sector")) {
    int64_t sector = -1;
    if (!absl::SimpleAtoi(*text, &sector) || sector < -1 ||
        sector > std::numeric_limits<int64_t>::max() / int64_t{512}) {
      options.note(invalid("Invalid sector", *text));
    }
    if (sector >= 0) rule.sector = Sector(static_cast<uint64_t>(sector));
  }
  if (absl::Status status = options.finish(); !status.ok()) return status;
  config->errors.push_back(rule);
  return absl::OkStatus();
}

absl::Status add_set_state(const OptionMap& section, BlkdebugConfig* config) {
  FilterOptions options(kSetState, section);
  BlkdebugSetState rule;
  rule.event = take_event(&options);
  take_int(&options, "state", &rule.state);
  take_int(&options, "new_state", &rule.new_state);
  if (absl::Status status = options.finish(); !status.ok()) return status;
  config->set_states.push_back(rule);
  return absl::OkStatus();
}

absl::Status add_section(absl::string_view kind, const OptionMap& section,
                         BlkdebugConfig* config) {
  return kind == kInjectError ? add_error(section, config)
                              : add_set_state(section, config);
}

// Takes what begins with "kind.", and makes a section of each number.
absl::Status take_sections(absl::string_view kind, FilterOptions* options,
                           BlkdebugConfig* config) {
  const std::string prefix = absl::StrCat(kind, ".");
  std::map<uint64_t, OptionMap> sections;
  const OptionMap all = options->rest();
  for (const auto& [name, value] : all) {
    if (!absl::StartsWith(name, prefix)) continue;
    const std::vector<std::string> parts =
        absl::StrSplit(name.substr(prefix.size()), absl::MaxSplits('.', 1));
    uint64_t number = 0;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &number)) continue;
    sections[number][parts[1]] = value;
    options->take_text(name);
  }
  for (const auto& [number, section] : sections) {
    absl::Status status = add_section(kind, section, config);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return errno_status(
        errno,
        absl::StrCat("Could not read blkdebug config file '", path, "'"));
  }
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("blkdebug config file '", path,
                     "' is longer than the limit of ", kMaxFileBytes));
  }
  return text;
}

// name = "value"
bool split_line(absl::string_view line, std::string* name, std::string* value) {
  const size_t equals = line.find('=');
  if (equals == absl::string_view::npos) return false;
  const absl::string_view left =
      absl::StripAsciiWhitespace(line.substr(0, equals));
  const absl::string_view right =
      absl::StripAsciiWhitespace(line.substr(equals + 1));
  if (left.empty() || right.size() < 2 || right.front() != '"' ||
      right.find('"', 1) != right.size() - 1) {
    return false;
  }
  *name = std::string(left);
  *value = std::string(right.substr(1, right.size() - 2));
  return true;
}

}  // namespace

absl::Status parse_blkdebug_file(absl::string_view text,
                                 BlkdebugConfig* config) {
  std::string kind;
  OptionMap section;
  int number = 0;
  for (const absl::string_view raw_line : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view line = absl::StripAsciiWhitespace(raw_line);
    if (line.empty() || line.front() == '#') continue;
    if (line.front() == '[') {
      if (!kind.empty()) {
        absl::Status status = add_section(kind, section, config);
        if (!status.ok()) return status;
      }
      section.clear();
      kind = std::string(line.substr(1, line.size() - 1));
      if (kind.empty() || kind.back() != ']')
        return invalid(absl::StrCat("line ", number, " is no section:"), line);
      kind.pop_back();
      if (kind != kInjectError && kind != kSetState)
        return invalid("There is no option group", kind);
      continue;
    }
    std::string name;
    std::string value;
    if (kind.empty() || !split_line(line, &name, &value)) {
      return invalid(absl::StrCat("line ", number,
                                  " is not of the form name = \"value\":"),
                     line);
    }
    section[name] = value;
  }
  if (kind.empty()) return absl::OkStatus();
  return add_section(kind, section, config);
}

absl::StatusOr<BlkdebugConfig> take_blkdebug_options(FilterOptions* options) {
  BlkdebugConfig config;
  if (const auto path = options->take_text("config");
      path.has_value() && !path->empty()) {
    const absl::StatusOr<std::string> text = read_text(*path);
    if (!text.ok()) return text.status();
    absl::Status status = parse_blkdebug_file(*text, &config);
    if (!status.ok()) return status;
  }
  for (const absl::string_view kind : {kInjectError, kSetState}) {
    absl::Status status = take_sections(kind, options, &config);
    if (!status.ok()) return status;
  }
  options->take_size("align", &config.limits.align);
  options->take_size("max-transfer", &config.limits.max_transfer);
  options->take_size("opt-write-zero", &config.limits.opt_write_zero);
  options->take_size("max-write-zero", &config.limits.max_write_zero);
  options->take_size("opt-discard", &config.limits.opt_discard);
  options->take_size("max-discard", &config.limits.max_discard);
  uint64_t seed = 0;
  const bool has_seed = options->rest().count("seed") != 0;
  options->take_number("seed", &seed);
  if (has_seed) config.seed = seed;
  if (absl::Status status = options->finish(); !status.ok()) return status;
  return config;
}

absl::Status check_blkdebug_limits(const BlkdebugLimits& limits,
                                   uint64_t child_alignment) {
  const auto bad = [](absl::string_view name, uint64_t value) {
    return absl::InvalidArgumentError(absl::StrCat(
        "blkdebug: Cannot meet constraints with ", name, " ", value));
  };
  constexpr uint64_t kLimit = std::numeric_limits<int32_t>::max();
  if (limits.align != 0 &&
      (limits.align >= kLimit || !is_power_of_two(limits.align))) {
    return bad("align", limits.align);
  }
  const uint64_t align = std::max(limits.align, child_alignment);
  const struct {
    absl::string_view name;
    uint64_t value;
    uint64_t unit;
  } rows[] = {
      {"max-transfer", limits.max_transfer, align},
      {"opt-write-zero", limits.opt_write_zero, align},
      {"max-write-zero", limits.max_write_zero,
       std::max(limits.opt_write_zero, align)},
      {"opt-discard", limits.opt_discard, align},
      {"max-discard", limits.max_discard, std::max(limits.opt_discard, align)},
  };
  for (const auto& row : rows) {
    if (row.value >= kLimit || row.value % row.unit != 0)
      return bad(row.name, row.value);
  }
  return absl::OkStatus();
}

}  // namespace spindle

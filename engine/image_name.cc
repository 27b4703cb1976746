#include "engine/image_name.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/json_options.h"
#include "engine/qemu_order.h"

namespace spindle {
namespace {

constexpr absl::string_view kJsonPrefix = "json:";

void append_quoted(absl::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') out->push_back('\\');
    out->push_back(c);
  }
  out->push_back('"');
}

// One level of options with dots in their names.
struct Level {
  std::map<std::string, std::string, QemuOrder> values;
  std::map<std::string, OptionMap, QemuOrder> inner;
};

Level split(const OptionMap& options) {
  Level level;
  for (const auto& [name, value] : options) {
    const size_t dot = name.find('.');
    if (dot == std::string::npos) {
      level.values[name] = value;
    } else {
      level.inner[name.substr(0, dot)][name.substr(dot + 1)] = value;
    }
  }
  return level;
}

using Members = std::map<std::string, std::string, QemuOrder>;

// The names are "0", "1" and so on.
bool is_list(const Members& members) {
  for (size_t i = 0; i < members.size(); ++i) {
    if (members.count(absl::StrCat(i)) == 0) return false;
  }
  return !members.empty();
}

std::string to_json(const OptionMap& options) {
  const Level level = split(options);
  // Both kinds in one order.
  Members members;
  for (const auto& [name, value] : level.values) {
    std::string& text = members[name];
    if (value == kNullOption) {
      text = "null";
    } else {
      append_quoted(value, &text);
    }
  }
  for (const auto& [name, inner] : level.inner) members[name] = to_json(inner);
  if (is_list(members)) {
    std::vector<std::string> values;
    for (size_t i = 0; i < members.size(); ++i)
      values.push_back(members[absl::StrCat(i)]);
    return absl::StrCat("[", absl::StrJoin(values, ", "), "]");
  }
  std::string json = "{";
  for (const auto& [name, text] : members) {
    if (json.size() > 1) absl::StrAppend(&json, ", ");
    append_quoted(name, &json);
    absl::StrAppend(&json, ": ", text);
  }
  return absl::StrCat(json, "}");
}

}  // namespace

std::optional<absl::string_view> protocol_prefix(absl::string_view name) {
  const size_t end = name.find_first_of(":/");
  if (end == absl::string_view::npos || name[end] != ':') return std::nullopt;
  return name.substr(0, end);
}

bool is_json_name(absl::string_view name) {
  return absl::StartsWith(name, kJsonPrefix);
}

absl::StatusOr<OptionMap> parse_json_name(absl::string_view name) {
  return parse_json_options(absl::StripPrefix(name, kJsonPrefix));
}

std::string unmistakable_filename(absl::string_view filename) {
  return protocol_prefix(filename).has_value() ? absl::StrCat("./", filename)
                                               : std::string(filename);
}

std::string resolve_backing_filename(const std::string& parent_filename,
                                     const std::string& filename) {
  if (filename.empty() || filename.front() == '/') return filename;
  const size_t slash = parent_filename.rfind('/');
  if (slash == std::string::npos) return filename;
  return absl::StrCat(parent_filename.substr(0, slash + 1), filename);
}

std::string resolve_backing_filename(NameSyntax syntax,
                                     const std::string& parent_filename,
                                     const std::string& filename) {
  if (syntax == NameSyntax::kQemu && protocol_prefix(filename).has_value())
    return filename;
  return resolve_backing_filename(parent_filename, filename);
}

OptionMap take_child_options(absl::string_view child, OptionMap* options) {
  const std::string prefix = absl::StrCat(child, ".");
  OptionMap below;
  for (auto it = options->lower_bound(prefix);
       it != options->end() && absl::StartsWith(it->first, prefix);) {
    below[it->first.substr(prefix.size())] = std::move(it->second);
    it = options->erase(it);
  }
  return below;
}

std::string describe_options_as_name(const OptionMap& options) {
  return absl::StrCat(kJsonPrefix, to_json(options));
}

}  // namespace spindle

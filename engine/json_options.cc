#include "engine/json_options.h"

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/image_name.h"

namespace spindle {
namespace {

// As deep as objects and lists may be nested, and as long as a text may be:
// more is no description of an image.
constexpr int kMaxDepth = 64;
constexpr size_t kMaxTextBytes = size_t{1} << 20;

struct Value {
  enum class Kind { kObject, kList, kString, kOther } kind = Kind::kOther;
  std::string text;           // of a string, a number, or what a keyword means
  std::vector<Value> values;  // of an object or a list
  std::vector<std::string> names;  // of an object's values
};

absl::Status parse_error(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(
      "Could not parse the JSON options: JSON parse error, ", what));
}

class Parser {
 public:
  explicit Parser(absl::string_view text) : rest_(text) {}

  absl::StatusOr<Value> parse() {
    if (next() == '\0' && rest_.empty()) {
      return absl::InvalidArgumentError(
          "Could not parse the JSON options: Expecting a JSON value");
    }
    absl::StatusOr<Value> value = parse_value(0);
    if (!value.ok()) return value;
    next();
    if (!rest_.empty()) {
      return absl::InvalidArgumentError(
          "Could not parse the JSON options: Expecting at most one JSON value");
    }
    return value;
  }

 private:
  // The next character that is no space; '\0' at the end.
  char next() {
    while (!rest_.empty() &&
           absl::string_view(" \t\r\n").find(rest_[0]) != rest_.npos) {
      rest_.remove_prefix(1);
    }
    return rest_.empty() ? '\0' : rest_[0];
  }
  bool take(char wanted) {
    if (next() != wanted || rest_.empty()) return false;
    rest_.remove_prefix(1);
    return true;
  }
  absl::Status unexpected(absl::string_view what) {
    return parse_error(next() == '\0' && rest_.empty() ? "premature EOI"
                                                       : what);
  }

  absl::StatusOr<Value> parse_value(int depth);
  absl::StatusOr<Value> parse_object(int depth);
  absl::StatusOr<Value> parse_list(int depth);
  absl::StatusOr<Value> parse_string();
  absl::StatusOr<Value> parse_number();
  absl::StatusOr<Value> parse_keyword();
  absl::Status parse_escape(std::string* text);
  // The four digits of "\u".
  bool take_code_unit(uint32_t* unit);

  absl::string_view rest_;
};

absl::StatusOr<Value> Parser::parse_value(int depth) {
  if (depth > kMaxDepth) return parse_error("nesting depth limit exceeded");
  const char first = next();
  if (first == '{') return parse_object(depth);
  if (first == '[') return parse_list(depth);
  if (first == '"' || first == '\'') return parse_string();
  if (first == '-' || absl::ascii_isdigit(static_cast<unsigned char>(first)))
    return parse_number();
  if (absl::ascii_isalpha(static_cast<unsigned char>(first)))
    return parse_keyword();
  return unexpected("expecting value");
}

absl::StatusOr<Value> Parser::parse_object(int depth) {
  Value object{
      .kind = Value::Kind::kObject, .text = {}, .values = {}, .names = {}};
  std::set<std::string> names;
  take('{');
  if (take('}')) return object;
  do {
    absl::StatusOr<Value> name = parse_value(depth + 1);
    if (!name.ok()) return name;
    if (name->kind != Value::Kind::kString)
      return unexpected("key is not a string in object");
    if (!take(':')) return unexpected("missing : in object pair");
    absl::StatusOr<Value> value = parse_value(depth + 1);
    if (!value.ok()) return value;
    if (!names.insert(name->text).second) return parse_error("duplicate key");
    object.names.push_back(std::move(name->text));
    object.values.push_back(*std::move(value));
  } while (take(','));
  if (!take('}')) return unexpected("expected separator in dict");
  return object;
}

absl::StatusOr<Value> Parser::parse_list(int depth) {
  Value list{.kind = Value::Kind::kList, .text = {}, .values = {}, .names = {}};
  take('[');
  if (take(']')) return list;
  do {
    absl::StatusOr<Value> value = parse_value(depth + 1);
    if (!value.ok()) return value;
    list.values.push_back(*std::move(value));
  } while (take(','));
  if (!take(']')) return unexpected("expected separator in list");
  return list;
}

bool Parser::take_code_unit(uint32_t* unit) {
  constexpr size_t kDigits = 4;
  if (rest_.size() < kDigits) return false;
  *unit = 0;
  for (size_t i = 0; i < kDigits; ++i) {
    const char digit = rest_[i];
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(digit))) return false;
    *unit = *unit * 16 + static_cast<uint32_t>(digit <= '9'
                                                   ? digit - '0'
                                                   : (digit | 0x20) - 'a' + 10);
  }
  rest_.remove_prefix(kDigits);
  return true;
}

// As UTF-8.
void append_code_point(uint32_t code, std::string* text) {
  const auto tail = [&](int shift) {
    text->push_back(static_cast<char>(0x80 | ((code >> shift) & 0x3f)));
  };
  if (code < 0x80) {
    text->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    text->push_back(static_cast<char>(0xc0 | (code >> 6)));
    tail(0);
  } else if (code < 0x10000) {
    text->push_back(static_cast<char>(0xe0 | (code >> 12)));
    tail(6);
    tail(0);
  } else {
    text->push_back(static_cast<char>(0xf0 | (code >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

absl::Status Parser::parse_escape(std::string* text) {
  static constexpr absl::string_view kNames = "\"'\\/bfnrt";
  static constexpr absl::string_view kMeanings = "\"'\\/\b\f\n\r\t";
  const char name = rest_.empty() ? '\0' : rest_[0];
  if (!rest_.empty()) rest_.remove_prefix(1);
  if (const size_t at = kNames.find(name); at != kNames.npos) {
    text->push_back(kMeanings[at]);
    return absl::OkStatus();
  }
  uint32_t unit = 0;
  if (name != 'u' || !take_code_unit(&unit))
    return parse_error("invalid escape sequence in string");
  const bool is_high = unit >= 0xd800 && unit <= 0xdbff;
  uint32_t low = 0;
  if (is_high && rest_.substr(0, 2) == "\\u") {
    rest_.remove_prefix(2);
    if (!take_code_unit(&low)) low = 0;
  }
  if (is_high && low >= 0xdc00 && low <= 0xdfff) {
    append_code_point(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00), text);
  } else if (unit == 0 || (unit >= 0xd800 && unit <= 0xdfff)) {
    return parse_error("invalid Unicode character in string");
  } else {
    append_code_point(unit, text);
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> Parser::parse_string() {
  Value value{
      .kind = Value::Kind::kString, .text = {}, .values = {}, .names = {}};
  const char quote = rest_[0];
  const absl::string_view begin = rest_;
  rest_.remove_prefix(1);
  while (!rest_.empty() && rest_[0] != quote) {
    const char c = rest_[0];
    if (static_cast<unsigned char>(c) < 0x20) break;
    rest_.remove_prefix(1);
    if (c != '\\') {
      value.text.push_back(c);
      continue;
    }
    absl::Status status = parse_escape(&value.text);
    if (!status.ok()) return status;
  }
  if (rest_.empty() || rest_[0] != quote)
    return parse_error(absl::StrCat("stray '", begin.substr(0, 1), "'"));
  rest_.remove_prefix(1);
  return value;
}

absl::StatusOr<Value> Parser::parse_number() {
  static constexpr absl::string_view kCharacters = "+-.0123456789eE";
  size_t length = rest_.find_first_not_of(kCharacters);
  if (length == rest_.npos) length = rest_.size();
  Value value;
  value.text = std::string(rest_.substr(0, length));
  rest_.remove_prefix(length);
  return value;
}

absl::StatusOr<Value> Parser::parse_keyword() {
  size_t length = 0;
  while (length < rest_.size() &&
         absl::ascii_isalpha(static_cast<unsigned char>(rest_[length]))) {
    ++length;
  }
  const absl::string_view word = rest_.substr(0, length);
  rest_.remove_prefix(length);
  Value value;
  if (word == "true") {
    value.text = "on";
  } else if (word == "false") {
    value.text = "off";
  } else if (word == "null") {
    value.text = std::string(kNullOption);
  } else {
    return parse_error(absl::StrCat("invalid keyword '", word, "'"));
  }
  return value;
}

void flatten(const std::string& name, const Value& value, OptionMap* options) {
  if (value.kind == Value::Kind::kString || value.kind == Value::Kind::kOther) {
    (*options)[name] = value.text;
    return;
  }
  const bool is_list = value.kind == Value::Kind::kList;
  for (size_t i = 0; i < value.values.size(); ++i) {
    const std::string member = is_list ? absl::StrCat(i) : value.names[i];
    flatten(absl::StrCat(name, ".", member), value.values[i], options);
  }
}

}  // namespace

absl::StatusOr<OptionMap> parse_json_options(absl::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON options of ", text.size(),
                     " bytes are longer than the limit of ", kMaxTextBytes));
  }
  const absl::StatusOr<Value> value = Parser(text).parse();
  if (!value.ok()) return value.status();
  if (value->kind != Value::Kind::kObject)
    return absl::InvalidArgumentError("Invalid JSON object given");
  OptionMap options;
  const auto is_nested = [](const Value& member) {
    return member.kind == Value::Kind::kObject ||
           member.kind == Value::Kind::kList;
  };
  for (const bool nested : {false, true}) {
    for (size_t i = 0; i < value->values.size(); ++i) {
      if (is_nested(value->values[i]) == nested)
        flatten(value->names[i], value->values[i], &options);
    }
  }
  return options;
}

}  // namespace spindle

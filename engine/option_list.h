// Lists of options in one text, as QEMU's tools take them: "a=1,b=2", with ",,"
// for a comma in a value.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_OPTION_LIST_H_
#define SPINDLE_ENGINE_OPTION_LIST_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace spindle {

struct OptionItem {
  std::string name;
  std::string value;
  // What stood there, if it had no '=': "name", which means "on", or "noname",
  // which means "off".
  std::string short_form;
  bool is_short = false;  // even if that is empty: ",,"
};

// In order; of an option that is there twice, the last counts.  A first item
// without '=' is the value of `implied_name`, if that is not empty.
std::vector<OptionItem> split_option_list(absl::string_view text,
                                          absl::string_view implied_name = {});

// True if one of the items asks for help ("help" or "?").
bool asks_for_help(absl::string_view text);

// A value as it is written in such a list.
std::string escape_option_value(absl::string_view value);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_OPTION_LIST_H_

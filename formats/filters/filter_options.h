// FilterOptions: the options of one filter, taken out one by one; what is left
// over in the end is an error.
//
// Each take_...() leaves its target alone if the option is not there.  The
// first error stays.
//
// Thread safety: one thread.
#ifndef SPINDLE_FORMATS_FILTERS_FILTER_OPTIONS_H_
#define SPINDLE_FORMATS_FILTERS_FILTER_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"

namespace spindle {

class FilterOptions {
 public:
  FilterOptions(absl::string_view driver, OptionMap options);

  // Bytes, with suffixes.
  void take_size(const std::string& name, uint64_t* value);
  // Decimal digits.
  void take_number(const std::string& name, uint64_t* value);
  void take_bool(const std::string& name, bool* value);
  std::optional<std::string> take_text(const std::string& name);
  // Keeps `status` as the error, if it is one and the first.
  void note(absl::Status status);

  // What nobody has taken yet.
  const OptionMap& rest() const { return options_; }
  // Errors: the first that was met, or kInvalidArgument for what is left.
  absl::Status finish() const;

 private:
  const std::string driver_;
  OptionMap options_;
  absl::Status status_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_FILTER_OPTIONS_H_

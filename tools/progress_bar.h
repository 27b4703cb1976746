// A progress bar on standard error, where that is a terminal; nothing
// elsewhere.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_PROGRESS_BAR_H_
#define SPINDLE_TOOLS_PROGRESS_BAR_H_

#include <string>

#include "absl/time/time.h"

namespace spindle {

class ProgressBar {
 public:
  ProgressBar();
  // Erases the bar.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws at most some twenty times a second.  `fraction` is 0 to 1.
  void update(double fraction, const std::string& label);
  // Makes room for a line of output.
  void erase();

 private:
  const bool terminal_;
  bool drawn_ = false;
  absl::Time last_draw_ = absl::InfinitePast();
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_PROGRESS_BAR_H_

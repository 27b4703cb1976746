// What a check says of an image: ours and QEMU's, in one form.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TESTS_FORMATS_QCOW2_CHECK_REPORT_H_
#define SPINDLE_TESTS_FORMATS_QCOW2_CHECK_REPORT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/block_driver.h"
#include "engine/image_check.h"

namespace spindle::testing {

struct CheckReport {
  // The check could not say anything.
  bool failed = false;
  // That of the program; ours is what spindle-img makes of it.
  int exit_code = 0;
  CheckResult result;
  std::vector<std::string> lines;
};

// What `timeout` exits with when the time is over, and it has killed the tool.
inline constexpr int kToolTimedOut = 124;

// Of bitmaps that somebody lost; what follows stands on the same line.
inline constexpr char kLeakWarning[] =
    "Some clusters may be leaked, run 'qemu-img check -r' on the image file to "
    "fix.";

// `repair`: what qemu-img's -r takes; empty: nothing.  After a repair the
// counts are those of the check that follows it.
// A damaged image can keep QEMU busy for ever: it is killed after `seconds`.
CheckReport check_with_qemu(const std::string& path,
                            const std::string& repair = "", int seconds = 600);
CheckReport check_with_ours(std::shared_ptr<BlockDriver> file,
                            CheckOptions options);
// The same with qemu-img's second check.
CheckReport repair_with_ours(const std::shared_ptr<BlockDriver>& file,
                             const std::string& repair);

// The exit code of `check` for what `report` says.
int exit_code_for(const CheckReport& report);

// All but what was repaired.
std::string counts_of(const CheckReport& report);
// "failed", or what was repaired.
std::string fixes_of(const CheckReport& report);
bool is_clean(const CheckReport& report);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW2_CHECK_REPORT_H_

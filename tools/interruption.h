// Interruption: a command that is asked to end (SIGINT, SIGTERM, SIGHUP) cleans
// up first, and then ends as if it had not.
//
// Thread safety: one object at a time, on the main thread; flag() anywhere.
#ifndef SPINDLE_TOOLS_INTERRUPTION_H_
#define SPINDLE_TOOLS_INTERRUPTION_H_

#include <atomic>

namespace spindle {

class Interruption {
 public:
  // From here on the signals set flag().
  Interruption();
  // From here on they end the process.  If one came meanwhile, that is now:
  // whatever has to be cleaned up must be destroyed before this is.
  ~Interruption();
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

  static const std::atomic<bool>* flag();
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_INTERRUPTION_H_

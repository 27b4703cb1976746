// What an image that exists shall be changed into.
//
// Thread safety: values.
#ifndef SPINDLE_ENGINE_AMEND_H_
#define SPINDLE_ENGINE_AMEND_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace spindle {

struct AmendOptions {
  // What shall be otherwise, by the names of creation options.
  std::map<std::string, std::string> changes;
  // Also what loses data for good (the last key slot of an encrypted image).
  bool force = false;
  // How far it is; 0 <= done <= total.  From one thread at a time; may be
  // empty.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
  // Set by anybody, at any time: amend() then returns kCancelled soon, unless
  // it is past the point where a change takes effect.  May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_AMEND_H_

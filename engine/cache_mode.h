// CacheMode: QEMU's cache modes by name.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_CACHE_MODE_H_
#define SPINDLE_ENGINE_CACHE_MODE_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"

namespace spindle {

// direct and no_flush concern how the file is opened (OpenOptions); the device
// itself adds writethrough.
enum class CacheMode {
  kWriteback,     // writes are durable after flush()
  kWritethrough,  // every write is durable when it completes
  kNone,          // as writeback, bypassing the page cache
  kDirectsync,    // as writethrough, bypassing the page cache
  kUnsafe,        // flush() does nothing
};

// "writeback", "writethrough", "none", "directsync", "unsafe".
absl::StatusOr<CacheMode> parse_cache_mode(absl::string_view name);
absl::string_view cache_mode_name(CacheMode mode);
// Sets direct and no_flush as `mode` wants them.
void apply_cache_mode(CacheMode mode, OpenOptions* options);

constexpr bool is_writethrough(CacheMode mode) {
  return mode == CacheMode::kWritethrough || mode == CacheMode::kDirectsync;
}

}  // namespace spindle

#endif  // SPINDLE_ENGINE_CACHE_MODE_H_

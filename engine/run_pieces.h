// Runs independent pieces of a long operation, in parallel where there is an
// executor.  The caller's thread runs pieces itself, so that a full pool cannot
// hold it up.
//
// Thread safety: any thread; `piece` is called from several at a time.
#ifndef SPINDLE_ENGINE_RUN_PIECES_H_
#define SPINDLE_ENGINE_RUN_PIECES_H_

#include <cstddef>

#include "absl/functional/function_ref.h"
#include "threadpool/executor.h"

namespace spindle {

// Calls piece(0) to piece(count - 1), each once, and returns when all have
// returned.  At most `max_helpers` workers of `executor` (may be null) help.
void run_pieces(Executor* executor, size_t count, size_t max_helpers,
                absl::FunctionRef<void(size_t index)> piece);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_RUN_PIECES_H_

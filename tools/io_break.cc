// The commands of spindle-io that stop requests at blkdebug's events.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/errors.h"
#include "formats/filters/blkdebug_driver.h"
#include "formats/filters/blkdebug_events.h"
#include "tools/io_command.h"

namespace spindle {
namespace {

// How long a wait lasts before it looks what has finished meanwhile.
constexpr absl::Duration kPatience = absl::Milliseconds(10);
// How long a request that has just been submitted may need to its breakpoint.
constexpr absl::Duration kTimeToStop = absl::Milliseconds(100);

// "Could not ...: <the error's name>"
IoOutcome report_error(const std::string& what, int error_number) {
  std::printf("Could not %s: %s\n", what.c_str(), std::strerror(error_number));
  return IoOutcome::kFailed;
}

void report_resumed(const std::string& tag, size_t count) {
  for (size_t i = 0; i < count; ++i)
    std::printf("blkdebug: Resuming request '%s'\n", tag.c_str());
}

IoOutcome run_break(IoCall& call) {
  BlkdebugDriver* const blkdebug = call.image->blkdebug();
  if (blkdebug == nullptr) return report_error("set breakpoint", ENOTSUP);
  const std::optional<BlkdebugEvent> event = find_blkdebug_event(call.argv[1]);
  if (!event.has_value()) return report_error("set breakpoint", ENOENT);
  if (!call.image->has_threads()) {
    return complain(
        "this build has no threads: what stopped would stop "
        "everything");
  }
  blkdebug->rules().set_breakpoint(*event, call.argv[2]);
  return IoOutcome::kDone;
}

IoOutcome run_remove_break(IoCall& call) {
  const std::string tag = call.argv[1];
  const std::string what = "remove breakpoint " + tag;
  BlkdebugDriver* const blkdebug = call.image->blkdebug();
  if (blkdebug == nullptr) return report_error(what, ENOTSUP);
  size_t resumed = 0;
  const absl::Status status =
      blkdebug->rules().remove_breakpoint(tag, &resumed);
  report_resumed(tag, resumed);
  return status.ok() ? IoOutcome::kDone : report_error(what, ENOENT);
}

IoOutcome run_resume(IoCall& call) {
  BlkdebugDriver* const blkdebug = call.image->blkdebug();
  if (blkdebug == nullptr) return report_error("resume request", ENOTSUP);
  BlkdebugRules& rules = blkdebug->rules();
  if (!call.image->is_idle())
    rules.wait_until_suspended(call.argv[1], kTimeToStop);
  call.image->report_stopped();
  if (!rules.resume(call.argv[1]).ok())
    return report_error("resume request", ENOENT);
  report_resumed(call.argv[1], 1);
  return IoOutcome::kDone;
}

// qemu-io waits for ever for what cannot happen.
IoOutcome run_wait_break(IoCall& call) {
  BlkdebugDriver* const blkdebug = call.image->blkdebug();
  if (blkdebug == nullptr) return report_error("wait for request", ENOTSUP);
  while (!blkdebug->rules().wait_until_suspended(call.argv[1], kPatience)) {
    call.image->collect_finished();
    if (call.image->is_idle()) return report_error("wait for request", ENOENT);
  }
  call.image->report_stopped();
  return IoOutcome::kDone;
}

constexpr IoCommand kCommands[] = {
    {.name = "break",
     .min_arguments = 2,
     .max_arguments = 2,
     .arguments = "event tag",
     .summary =
         "sets a breakpoint on event and tags the stopped request as tag",
     .run = run_break},
    {.name = "remove_break",
     .min_arguments = 1,
     .max_arguments = 1,
     .arguments = "tag",
     .summary = "remove a breakpoint by tag",
     .run = run_remove_break},
    {.name = "resume",
     .min_arguments = 1,
     .max_arguments = 1,
     .arguments = "tag",
     .summary = "resumes the request tagged as tag",
     .run = run_resume},
    {.name = "wait_break",
     .min_arguments = 1,
     .max_arguments = 1,
     .arguments = "tag",
     .summary = "waits for the suspension of a request",
     .run = run_wait_break},
};

}  // namespace

absl::Span<const IoCommand> io_break_commands() { return kCommands; }

}  // namespace spindle

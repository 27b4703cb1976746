// "-T": which of QEMU's trace events shall be traced.  Spindle has none of
// those; what names none is pointed out, as in qemu-io.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TOOLS_IO_TRACE_H_
#define SPINDLE_TOOLS_IO_TRACE_H_

#include <string>

namespace spindle {

enum class TraceOutcome {
  kDone,
  kHelp,   // it asked for the list of events, which is empty
  kWrong,  // said why
};

// `text`: "[[enable=]PATTERN][,events=FILE][,file=FILE]".
TraceOutcome apply_trace_option(const std::string& text);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_TRACE_H_

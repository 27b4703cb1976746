// The options of the commands that move data.
//
// Thread safety: one thread (getopt has state of its own).
#ifndef SPINDLE_TOOLS_IO_FLAGS_H_
#define SPINDLE_TOOLS_IO_FLAGS_H_

#include <cstdint>
#include <optional>

#include "tools/io_command.h"

namespace spindle {

struct IoFlags {
  bool vmstate = false;           // -b
  bool compressed = false;        // -c
  bool machine_readable = false;  // -C
  bool fua = false;               // -f
  bool invalid = false;           // -i
  bool no_fallback = false;       // -n
  bool quiet = false;             // -q
  bool may_unmap = false;         // -u
  bool verbose = false;           // -v
  bool zeroes = false;            // -z
  std::optional<uint8_t> pattern;
  const char* from = nullptr;    // -s: a file, or an offset
  const char* length = nullptr;  // -l
  // The index in argv of the first argument that is no option.
  int first = 0;
};

// Reads the options that `accepted` names, as getopt(3) does; afterwards argv
// has them before everything else.  Nothing, and a message, if one is wrong.
std::optional<IoFlags> parse_io_flags(IoCall& call, const char* accepted);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_FLAGS_H_

#include "tools/io_flags.h"

#include <unistd.h>

#include <cstdio>

#include "tools/io_text.h"

namespace spindle {

std::optional<IoFlags> parse_io_flags(IoCall& call, const char* accepted) {
  IoFlags flags;
  std::fflush(stdout);
  optind = 0;  // begin anew
  for (;;) {
    const int option = ::getopt(call.argc, call.argv, accepted);
    switch (option) {
      case -1:
        flags.first = optind;
        return flags;
      case 'b':
        flags.vmstate = true;
        break;
      case 'c':
        flags.compressed = true;
        break;
      case 'C':
        flags.machine_readable = true;
        break;
      case 'f':
        flags.fua = true;
        break;
      case 'i':
        flags.invalid = true;
        break;
      case 'l':
        flags.length = optarg;
        break;
      case 'n':
        flags.no_fallback = true;
        break;
      case 'p':  // as every request is, since long ago
        break;
      case 'P':
        flags.pattern = read_pattern(optarg);
        if (!flags.pattern.has_value()) return std::nullopt;
        break;
      case 'q':
        flags.quiet = true;
        break;
      case 's':
        flags.from = optarg;
        break;
      case 'u':
        flags.may_unmap = true;
        break;
      case 'v':
        flags.verbose = true;
        break;
      case 'z':
        flags.zeroes = true;
        break;
      default:
        show_usage(call);
        return std::nullopt;
    }
  }
}

}  // namespace spindle

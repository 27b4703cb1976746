// The commands of spindle-io that choose the image, and change how it is open.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/option_values.h"
#include "tools/cli_text.h"
#include "tools/io_command.h"
#include "tools/io_image.h"
#include "tools/io_open_flags.h"
#include "tools/io_text.h"

namespace spindle {
namespace {

// What the command line says, and what it names; nothing, and a message, if
// something is wrong.
std::optional<IoTarget> parse_open(IoCall& call) {
  IoTarget target;
  std::fflush(stdout);
  optind = 0;  // begin anew
  for (;;) {
    const int option = ::getopt(call.argc, call.argv, "snCro:ki:t:d:U");
    if (option == -1) break;
    if (option == 'o') {
      if (!add_options(optarg, &target.options)) return std::nullopt;
    } else if (option == '?') {
      show_usage(call);
      return std::nullopt;
    } else if (const std::string wrong =
                   apply_open_flag(option, optarg, &target);
               !wrong.empty()) {
      complain(wrong);
      return std::nullopt;
    }
  }
  if (call.session->image_opts() && optind == call.argc - 1) {
    if (!add_options(call.argv[optind], &target.options)) return std::nullopt;
  } else if (optind == call.argc - 1) {
    target.filename = call.argv[optind];
  } else if (optind != call.argc) {
    show_usage(call);
    return std::nullopt;
  }
  return target;
}

IoOutcome run_open(IoCall& call) {
  const std::optional<IoTarget> target = parse_open(call);
  return target.has_value() && call.session->open(*target) ? IoOutcome::kDone
                                                           : IoOutcome::kFailed;
}

IoOutcome run_close(IoCall& call) {
  return call.session->close() ? IoOutcome::kDone : IoOutcome::kFailed;
}

std::optional<IoImage::Changes> parse_reopen(IoCall& call) {
  IoImage::Changes changes;
  std::fflush(stdout);
  optind = 0;  // begin anew
  for (int option; (option = ::getopt(call.argc, call.argv, "c:o:rw")) != -1;) {
    if (option == 'o') {
      if (!add_options(optarg, &changes.options)) return std::nullopt;
    } else if (option == 'c') {
      const absl::StatusOr<CacheMode> mode = parse_io_cache_mode(optarg);
      if (!mode.ok()) {
        complain(absl::StrCat("Invalid cache option: ", optarg));
        return std::nullopt;
      }
      changes.cache_mode = *mode;
    } else if (option == '?') {
      show_usage(call);
      return std::nullopt;
    } else if (changes.read_only.has_value()) {
      complain("Only one -r/-w option may be given");
      return std::nullopt;
    } else {
      changes.read_only = option == 'r';
    }
  }
  if (optind == call.argc) return changes;
  show_usage(call);
  return std::nullopt;
}

IoOutcome run_reopen(IoCall& call) {
  std::optional<IoImage::Changes> changes = parse_reopen(call);
  if (!changes.has_value()) return IoOutcome::kFailed;
  const absl::Status status = call.image->reopen(*std::move(changes));
  call.image->collect_finished();
  return status.ok() ? IoOutcome::kDone : complain(qemu_words(status));
}

IoOutcome run_truncate(IoCall& call) {
  Preallocation preallocation = Preallocation::kOff;
  std::fflush(stdout);
  optind = 0;  // begin anew
  for (int option; (option = ::getopt(call.argc, call.argv, "m:")) != -1;) {
    if (option != 'm') return show_usage(call);
    const std::optional<Preallocation> mode = parse_preallocation(optarg);
    if (!mode.has_value()) {
      return complain(
          absl::StrCat("Invalid preallocation mode '", optarg, "'"));
    }
    preallocation = *mode;
  }
  if (optind == call.argc) return show_usage(call);
  const SizeArgument size = parse_size_argument(call.argv[optind]);
  // qemu-io names the first argument, whichever it is.
  if (!size.value.has_value()) {
    print_bad_number(size, call.argv[1]);
    return IoOutcome::kFailed;
  }
  const absl::Status status =
      call.image->device().set_length(*size.value, preallocation);
  call.image->collect_finished();
  return status.ok() ? IoOutcome::kDone : complain(qemu_words(status));
}

constexpr char kOpenDetails[] =
    " Of several -o, later options count more.  Without a path, they say "
    "which\n"
    " image it is.\n"
    "\n"
    " -C         what is read from a backing file is written into the image\n"
    " -d mode    unmap, or ignore: discards do nothing\n"
    " -i mode    threads, native or io_uring: all mean the pool\n"
    " -k         as -i native\n"
    " -n         as -t none\n"
    " -o list    options: driver=qcow2,l2-cache-size=1M\n"
    " -r         do not write to it\n"
    " -s         what is written is forgotten at the end\n"
    " -t mode    none, writeback, writethrough, directsync, unsafe\n"
    " -U         open it although somebody else writes to it; with -r\n"
    "\n"
    " \"open -n -o driver=raw disk.img\" opens a raw image for direct I/O.\n";

constexpr char kReopenDetails[] =
    " What is not said stays as it is.\n"
    "\n"
    " -c mode    none, writeback, writethrough, directsync, unsafe\n"
    " -o list    options, as with \"open\": those that can change\n"
    " -r         no more writes\n"
    " -w         writes again\n"
    "\n"
    " \"reopen -o l2-cache-size=1M\" gives L2 tables more memory, or less.\n";

constexpr IoCommand kCommands[] = {
    {.name = "open",
     .short_name = "o",
     .min_arguments = 1,
     .max_arguments = IoCommand::kAnyCount,
     .needs_image = false,
     .arguments = "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
     .summary = "open the file specified by path",
     .details = kOpenDetails,
     .run = run_open},
    {.name = "close",
     .short_name = "c",
     .summary = "close the current open file",
     .run = run_close},
    {.name = "reopen",
     .max_arguments = IoCommand::kAnyCount,
     .arguments = "[(-r|-w)] [-c cache] [-o options]",
     .summary = "reopens an image with new options",
     .details = kReopenDetails,
     .run = run_reopen},
    {.name = "truncate",
     .short_name = "t",
     .min_arguments = 1,
     .max_arguments = 3,
     .writes = true,
     .arguments = "[-m prealloc_mode] off",
     .summary = "truncates the current file at the given offset",
     .run = run_truncate},
};

}  // namespace

absl::Span<const IoCommand> io_open_commands() { return kCommands; }

}  // namespace spindle

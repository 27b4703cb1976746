// spindle-io: requests to an image, by hand.
#include <getopt.h>
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "engine/errors.h"
#include "tools/cli_text.h"
#include "tools/image_opts.h"
#include "tools/io_command.h"
#include "tools/io_image.h"
#include "tools/io_input.h"
#include "tools/io_open_flags.h"
#include "tools/io_session.h"
#include "tools/io_trace.h"

namespace {

using spindle::IoOutcome;
using spindle::IoSession;

constexpr char kUsage[] =
    "Usage: NAME [OPTIONS]... [-c COMMAND]... [FILE]\n"
    "Requests to a disk image, by hand.\n"
    "\n"
    "  -c, --cmd COMMAND      run this; without any, lines of standard input\n"
    "  -f, --format FORMAT    the image's format; guessed if not stated\n"
    "      --image-opts       FILE is a list of options: driver=qcow2,...\n"
    "      --object OBJECT    secret,id=ID,data=TEXT|file=NAME: a passphrase\n"
    "      --restrict         follow nothing that an image names but files\n"
    "  -r, --read-only        do not write to it\n"
    "  -s, --snapshot         writes are forgotten at the end\n"
    "  -n, --nocache          as -t none\n"
    "  -C, --copy-on-read     keep what is read from a backing file\n"
    "  -m, --misalign         buffers begin where direct I/O does not like it\n"
    "  -k, --native-aio       as -i native\n"
    "  -i, --aio MODE         threads, native, io_uring: all mean the pool\n"
    "  -t, --cache MODE       none, writeback, writethrough (default),\n"
    "                         directsync, unsafe\n"
    "  -d, --discard MODE     unmap (default), ignore\n"
    "  -T, --trace PATTERN    QEMU's trace events, of which there are none\n"
    "  -U, --force-share      read it also while somebody else writes\n"
    "  -h, --help             this text\n"
    "  -V, --version          which version this is\n"
    "\n"
    "\"NAME -c help\" lists the commands.\n";

constexpr int kImageOpts = 256;
constexpr int kObject = 257;
constexpr int kRestrict = 258;
constexpr char kShortOptions[] = "hVc:d:f:rsnCmki:t:T:U";
constexpr option kLongOptions[] = {
    {"help", no_argument, nullptr, 'h'},
    {"version", no_argument, nullptr, 'V'},
    {"cmd", required_argument, nullptr, 'c'},
    {"format", required_argument, nullptr, 'f'},
    {"read-only", no_argument, nullptr, 'r'},
    {"snapshot", no_argument, nullptr, 's'},
    {"nocache", no_argument, nullptr, 'n'},
    {"copy-on-read", no_argument, nullptr, 'C'},
    {"misalign", no_argument, nullptr, 'm'},
    {"native-aio", no_argument, nullptr, 'k'},
    {"aio", required_argument, nullptr, 'i'},
    {"cache", required_argument, nullptr, 't'},
    {"discard", required_argument, nullptr, 'd'},
    {"force-share", no_argument, nullptr, 'U'},
    {"trace", required_argument, nullptr, 'T'},
    {"image-opts", no_argument, nullptr, kImageOpts},
    {"object", required_argument, nullptr, kObject},
    {"restrict", no_argument, nullptr, kRestrict},
    {nullptr, 0, nullptr, 0},
};

[[noreturn]] void leave(int code) {
  std::exit(std::fflush(stdout) == 0 ? code : 1);
}

struct Arguments {
  std::vector<std::string> commands;
  spindle::IoTarget target;
  std::vector<std::string> objects;
  bool image_opts = false;
  bool has_image = false;
};

[[noreturn]] void show_usage(int code) {
  std::printf(
      "%s",
      absl::StrReplaceAll(kUsage, {{"NAME", spindle::program_name()}}).c_str());
  leave(code);
}

class ArgumentReader {
 public:
  Arguments read(int argc, char** argv) {
    for (int option; (option = ::getopt_long(argc, argv, kShortOptions,
                                             kLongOptions, nullptr)) != -1;) {
      take(option);
    }
    if (argc - optind > 1) show_usage(1);
    if (result_.image_opts && has_format_) {
      spindle::fail("--image-opts and -f are mutually exclusive");
      leave(1);
    }
    result_.has_image = optind < argc;
    if (!result_.has_image) return result_;
    if (result_.image_opts) {
      result_.target.options = spindle::parse_image_opts(
          argv[optind], spindle::ShortForms::kWarnedOf,
          /*implied_name=*/"");
    } else {
      result_.target.filename = argv[optind];
    }
    return result_;
  }

 private:
  void take(int option) {
    std::string wrong;
    switch (option) {
      case 'c':
        result_.commands.emplace_back(optarg);
        return;
      case 'f':
        result_.target.options["driver"] = optarg;
        has_format_ = true;
        return;
      case 'm':
        result_.target.misaligned_buffers = true;
        return;
      case 'V':
        std::printf("%s 0.1\n", spindle::program_name().c_str());
        leave(0);
      case 'h':
      case '?':
        show_usage(option == 'h' ? 0 : 1);
      case 'T':
        take_trace();
        return;
      case kImageOpts:
        result_.image_opts = true;
        return;
      case kObject:
        result_.objects.emplace_back(optarg);
        return;
      case kRestrict:
        spindle::restrict_images();
        return;
      default:
        wrong = spindle::apply_open_flag(option, optarg, &result_.target);
    }
    if (wrong.empty()) return;
    spindle::fail(wrong);
    leave(1);
  }

  static void take_trace() {
    const spindle::TraceOutcome outcome = spindle::apply_trace_option(optarg);
    if (outcome == spindle::TraceOutcome::kHelp) leave(0);
    if (outcome == spindle::TraceOutcome::kWrong) leave(1);
  }

  Arguments result_;
  bool has_format_ = false;
};

// The program's exit code: of all commands, 1 if one of them failed.
int run_commands(const std::vector<std::string>& commands, IoSession* session) {
  int code = 0;
  for (const std::string& command : commands) {
    const IoOutcome outcome = spindle::run_io_line(command, session);
    if (outcome == IoOutcome::kQuit) break;
    if (outcome == IoOutcome::kFailed) code = 1;
  }
  return code;
}

int run_standard_input(IoSession* session) {
  std::vector<std::string> words;
  for (const spindle::IoCommand* command : spindle::all_io_commands())
    words.emplace_back(command->name);
  const std::unique_ptr<spindle::IoInput> input = spindle::IoInput::create(
      spindle::program_name() + "> ", words,
      {.event_fd =
           [session] {
             return session->image() == nullptr ? -1
                                                : session->image()->event_fd();
           },
       .handle = [session] { session->image()->collect_finished(); }});
  int code = 0;
  while (const std::optional<std::string> line = input->next_line()) {
    const IoOutcome outcome = spindle::run_io_line(*line, session);
    if (outcome == IoOutcome::kQuit) break;
    if (outcome == IoOutcome::kFailed) code = 1;
  }
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  // A reader of the output that goes away is a failed write, no more.
  ::signal(SIGPIPE, SIG_IGN);
  spindle::set_program_name(argv[0]);
  const Arguments arguments = ArgumentReader().read(argc, argv);
  const auto secrets = spindle::load_secrets(arguments.objects);
  if (!secrets.ok())
    leave(spindle::fail(spindle::qemu_words(secrets.status())));
  IoSession session(arguments.image_opts, *secrets);
  if (arguments.has_image && !session.open(arguments.target)) leave(1);
  int code = arguments.commands.empty()
                 ? run_standard_input(&session)
                 : run_commands(arguments.commands, &session);
  if (!session.close()) code = 1;
  leave(code);
}

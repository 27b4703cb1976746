// Reading a subcommand's options, as qemu-img reads them: getopt_long's rules
// (abbreviated long names, options behind names), its two complaints, and what
// many subcommands have in common.
//
// What is wrong with a command line ends the process, with the message and the
// status that scripts expect.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_IMG_OPTIONS_H_
#define SPINDLE_TOOLS_IMG_OPTIONS_H_

#include <getopt.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/cache_mode.h"
#include "engine/format.h"
#include "engine/option_list.h"
#include "engine/secret_store.h"
#include "tools/image_opts.h"

namespace spindle {

// Long options without a letter.
enum LongOption : int {
  kOptionOutput = 256,
  kOptionBackingChain,
  kOptionObject,
  kOptionImageOpts,
  kOptionPattern,
  kOptionFlushInterval,
  kOptionNoDrain,
  kOptionTargetImageOpts,
  kOptionSize,
  kOptionPreallocation,
  kOptionShrink,
  kOptionSalvage,
  kOptionTargetIsZero,
  kOptionAdd,
  kOptionRemove,
  kOptionClear,
  kOptionEnable,
  kOptionDisable,
  kOptionMerge,
  kOptionBitmaps,
  kOptionForce,
  kOptionSkipBroken,
  kOptionRestrict,
  // Ours.
  kOptionThreads,
  kOptionRandom,
  kOptionSeed,
  kOptionInline,
  kOptionSweep,
  kOptionPicture,
};

// "<program>: <message>" and where to look for help; ends the process.
[[noreturn]] void exit_with_usage(absl::string_view message);
// "<program>: <message>"; ends the process.
[[noreturn]] void exit_with(absl::string_view message);

// What a command answers to an option that it does not know, or whose argument
// is missing.
enum class MisuseAnswer {
  kUsage,  // a message and where to look for help; failure
  kHelp,   // getopt's own message and all of the help; success
};

class OptionReader {
 public:
  // `letters` as for getopt, without the leading ':' and without "h", which
  // every command has; --help, --object, --image-opts and --restrict need not
  // be listed in `longs`, which ends with a row of zeroes.
  OptionReader(int argc, char** argv, absl::string_view letters,
               const std::vector<option>& longs,
               MisuseAnswer answer = MisuseAnswer::kUsage);

  // The next option that is the command's own, or nothing.
  std::optional<int> next();
  // Its argument.
  const char* argument() const { return optarg; }

  // What is no option; REQUIRES: next() returned nothing.
  const std::vector<std::string>& operands() const { return operands_; }
  bool image_opts() const { return image_opts_; }
  std::shared_ptr<const SecretStore> secrets() const { return secrets_; }

 private:
  void add_object(const std::string& text);

  const int argc_;
  char** const argv_;
  std::string letters_;
  std::vector<option> longs_;
  const MisuseAnswer answer_;
  std::vector<std::string> operands_;
  std::shared_ptr<SecretStore> secrets_;
  bool image_opts_ = false;
};

// "json" or "human"; anything else ends the process.
bool is_json_output(const std::optional<std::string>& output);

// The cache mode's name on the command line, which may be "off".
std::optional<CacheMode> cache_mode_of(absl::string_view name);

// The texts after several "-o", as one list of options.
class OptionText {
 public:
  // Says what is wrong with `text`, and returns false.
  bool add(absl::string_view text);
  bool empty() const { return text_.empty(); }
  bool asks_for_help() const { return spindle::asks_for_help(text_); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// The values of a list of options, each of the type that `known` says.
// Errors: kInvalidArgument, in QEMU's words.
absl::StatusOr<OptionMap> typed_options(absl::string_view text,
                                        const std::vector<OptionHelp>& known);

// What create and convert can be told about new images of a format: its own
// options and those of the protocol that files are made by.
std::vector<OptionHelp> all_create_options(const ImageFormat& format);

// "-o help" for new images of `format`; the exit code.
int print_create_help(const std::string& format, bool with_protocol);

// A size after an option, in QEMU's words for `what` ("start offset"); a wrong
// one ends the process.
uint64_t size_or_exit(absl::string_view what, const char* text);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMG_OPTIONS_H_

#include "tools/hints.h"

#include <unistd.h>

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"

namespace spindle {
namespace {

// In a hint, IMG is the program, NAME the image that could not be opened.
struct Hint {
  absl::string_view sign;  // what the message has
  absl::string_view text;
};

constexpr absl::string_view kUnknownFormat =
    "\"IMG --help\" ends with the formats that there are; without -f the "
    "format "
    "of an image that exists is found out";
constexpr absl::string_view kStateBackingFormat =
    "state the backing file's format with -F (-F raw, -F qcow2); "
    "\"IMG info\" of it says which it may be";
constexpr absl::string_view kOtherFormat =
    "the file has another format than was stated; \"IMG info NAME\" says which";

constexpr Hint kHints[] = {
    {"Unknown driver '", kUnknownFormat},
    {"Unknown file format", kUnknownFormat},
    {"Is another process using the image",
     "shut down the machine that has it, or wait for the command; to read what "
     "may be changing, add -U"},
    {"key-secret' is required",
     "the image is encrypted: --object secret,id=s,file=FILE gives the "
     "password "
     "in FILE, and --image-opts driver=qcow2,encrypt.key-secret=s,"
     "file.filename=NAME refers to it (luks: key-secret=s)"},
    {"Backing file specified without backing format", kStateBackingFormat},
    {"requires explicit backing format", kStateBackingFormat},
    {"backing format must be specified", kStateBackingFormat},
    {"Image is corrupt",
     "copy the file first, then \"IMG check -r all NAME\" repairs it; without "
     "writing it can be read as it is: \"IMG convert\""},
    {"Could not open backing file",
     "\"IMG info NAME\" says which it is; if it has moved, "
     "\"IMG rebase -u -b FILE -F FORMAT NAME\" says where to"},
    {"Image is not in qcow", kOtherFormat},
    {"Volume is not in LUKS format", kOtherFormat},
};

// As in "Could not open 'NAME': ..."; "IMAGE" if none is named.
absl::string_view image_named_in(absl::string_view message) {
  constexpr absl::string_view kBefore = "Could not open '";
  constexpr absl::string_view kUnnamed = "IMAGE";
  if (!absl::StartsWith(message, kBefore)) return kUnnamed;
  message.remove_prefix(kBefore.size());
  const size_t end = message.find("': ");
  return end == message.npos ? kUnnamed : message.substr(0, end);
}

}  // namespace

std::string hint_for(absl::string_view message, absl::string_view program) {
  if (absl::StartsWith(message, "warning: ")) return {};
  for (const Hint& hint : kHints) {
    if (!absl::StrContains(message, hint.sign)) continue;
    return absl::StrReplaceAll(
        hint.text, {{"IMG", program}, {"NAME", image_named_in(message)}});
  }
  return {};
}

bool hints_are_wanted() {
  const char* const wish = std::getenv("SPINDLE_HINTS");
  if (wish != nullptr) return absl::string_view(wish) == "always";
  return ::isatty(STDERR_FILENO) != 0;
}

}  // namespace spindle

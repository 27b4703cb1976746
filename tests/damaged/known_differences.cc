#include "tests/damaged/known_differences.h"

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace spindle::testing {
namespace {

// Parts of the names; empty: any.
struct Known {
  absl::string_view recipe;
  absl::string_view damage;
  absl::string_view question;
  absl::string_view kind;
  absl::string_view why;
};

constexpr absl::string_view kLazy =
    "who does not use the table does not read it: the disk can be rescued";

constexpr Known kKnown[] = {
    {"", "", "", "they do not end",
     "QEMU is busy for longer than anybody waits; we answer"},
    {"", "", "write", "we refuse what is damaged",
     "QEMU writes until it comes upon the damage, and damages more on the way"},
    {"", "snapshot", "read", "they refuse, we open", kLazy},
    {"", "snapshot", "map", "they refuse, we open", kLazy},
    {"", "bitmap", "read", "they refuse, we open", kLazy},
    {"", "bitmap", "map", "they refuse, we open", kLazy},
    {"", "snapshots_offset", "repair all", "",
     "what stands there is no snapshot table: making it one destroys one thing "
     "or another"},
    {"", "L1 entry", "repair all", "we leave more damage",
     "a table that is not aligned lies across others: QEMU's repair gives up "
     "half way, and ours leaves such a table alone"},
    {"", "l1_size", "repair leaks", "",
     "an L1 table that reaches over data: entries are what was written last"},
    {"", "autoclear features", "repair", "fixes",
     "QEMU's repair writes a header without snapshots, and repairs that"},
    {"", "extension 0x23852875", "repair", "fixes",
     "QEMU's repair writes a header without snapshots, and repairs that"},
    {"", "cluster_bits", "read", "we cannot read what they can",
     "compressed data that hold more than one cluster are damaged"},
    {"", "cluster_bits", "repair", "then we cannot read what they can",
     "compressed data that hold more than one cluster are damaged"},
    {"", "version: 0x3 -> 0x2", "write", "failed",
     "a discard that can do nothing is no error"},
    {"data-file", "L2 entry", "write", "failed",
     "the specification wants the guest's offset there; QEMU does not look"},
};

}  // namespace

std::string reason_for(const std::string& recipe, const std::string& damage,
                       const Difference& difference) {
  for (const Known& known : kKnown) {
    if (absl::StrContains(recipe, known.recipe) &&
        absl::StrContains(damage, known.damage) &&
        absl::StrContains(difference.question, known.question) &&
        absl::StrContains(difference.kind, known.kind)) {
      return std::string(known.why);
    }
  }
  return "";
}

}  // namespace spindle::testing

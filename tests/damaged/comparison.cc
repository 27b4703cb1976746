#include "tests/damaged/comparison.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

constexpr char kTheyAreEndless[] = "they do not end";

// Longer than any of these files should become.
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 28;

// The first lines and the last.
std::string lines_of(const CheckReport& report) {
  constexpr size_t kFirst = 24;
  constexpr size_t kLast = 6;
  std::string text = absl::StrCat(counts_of(report), "; ", fixes_of(report));
  for (size_t i = 0; i < report.lines.size(); ++i) {
    if (i >= kFirst && i + kLast < report.lines.size()) continue;
    absl::StrAppend(&text, "\n    ", report.lines[i]);
  }
  return text;
}

std::string both(const std::string& theirs, const std::string& ours) {
  return absl::StrCat("  theirs: ", theirs, "\n  ours: ", ours);
}

// "refused" here, an answer there.
std::string openness(bool theirs, bool ours) {
  return absl::StrCat(theirs ? "they open" : "they refuse", ", ",
                      ours ? "we open" : "we refuse");
}

// The sectors that both could read and that are not alike.
size_t unlike_sectors(const Contents& theirs, const Contents& ours) {
  std::vector<uint64_t> bad = theirs.bad_sectors;
  bad.insert(bad.end(), ours.bad_sectors.begin(), ours.bad_sectors.end());
  std::sort(bad.begin(), bad.end());
  const size_t sectors = std::min(theirs.bytes.size(), ours.bytes.size()) / 512;
  size_t unlike = 0;
  for (size_t i = 0; i < sectors; ++i) {
    if (std::binary_search(bad.begin(), bad.end(), i)) continue;
    const auto at = static_cast<ptrdiff_t>(i * 512);
    unlike +=
        !std::equal(theirs.bytes.begin() + at, theirs.bytes.begin() + at + 512,
                    ours.bytes.begin() + at);
  }
  return unlike;
}

std::string span(const std::vector<uint64_t>& sectors) {
  if (sectors.empty()) return "none";
  return absl::StrCat(sectors.size(), " from ", sectors.front(), " to ",
                      sectors.back());
}

// Empty: they are alike, as far as they can be.
std::string compare_contents(const Contents& theirs, const Contents& ours) {
  if (theirs.endless) return kTheyAreEndless;
  if (theirs.opened != ours.opened) return openness(theirs.opened, ours.opened);
  if (!theirs.opened) return "";
  if (theirs.bytes.size() != ours.bytes.size()) return "lengths";
  if (unlike_sectors(theirs, ours) != 0) return "bytes";
  if (!std::includes(theirs.bad_sectors.begin(), theirs.bad_sectors.end(),
                     ours.bad_sectors.begin(), ours.bad_sectors.end()))
    return "we cannot read what they can";
  // Once it has come upon a damaged table, QEMU reads nothing any more.
  if (theirs.bad_sectors != ours.bad_sectors && !theirs.gave_up)
    return "we read what they cannot";
  return "";
}

std::string contents_details(const Contents& theirs, const Contents& ours) {
  const auto describe = [](const Contents& contents) {
    return absl::StrCat(contents.bytes.size(), " bytes, bad sectors ",
                        span(contents.bad_sectors), " ", contents.message);
  };
  return absl::StrCat(both(describe(theirs), describe(ours)), "\n  unlike ",
                      unlike_sectors(theirs, ours));
}

// Of what `check` exits with: nothing, leaks, corruptions, no result.
int badness(int exit_code) {
  return exit_code == 0 ? 0 : exit_code == 3 ? 1 : exit_code == 2 ? 2 : 3;
}

uint64_t leaks_left(const CheckReport& report) {
  return report.failed ? 0 : report.result.leaks;
}

uint64_t damage_left(const CheckReport& report) {
  return report.failed ? UINT64_MAX
                       : report.result.corruptions + report.result.check_errors;
}

}  // namespace

Comparison::Comparison(const BaseImage& base)
    : base_(base), path_(tmpfs_path("damaged")) {}

Comparison::~Comparison() { ::unlink(path_.c_str()); }

void Comparison::reset(const Bytes& image) {
  EXPECT_TRUE(write_file(path_, image).ok());
  for (const Companion& companion : base_.companions)
    EXPECT_TRUE(write_file(companion.path, companion.bytes).ok());
}

void Comparison::compare_reading() {
  const std::string their_info = qemu_.info(path_);
  const std::string our_info = spindle_.info(path_);
  if (their_info == kEndless) {
    note("info", kTheyAreEndless);
  } else if ((their_info == kRefused) != (our_info == kRefused)) {
    note("info", openness(their_info != kRefused, our_info != kRefused),
         both(qemu_.reason, spindle_.reason));
  } else if (their_info != our_info) {
    note("info", "says", both(their_info, our_info));
  }
  const Contents theirs = qemu_.read(path_);
  const Contents ours = spindle_.read(path_);
  const std::string kind = compare_contents(theirs, ours);
  if (!kind.empty()) note("read", kind, contents_details(theirs, ours));
}

void Comparison::compare_map() {
  const std::string theirs = qemu_.map(path_);
  const std::string ours = spindle_.map(path_);
  if (theirs == ours) return;
  if (theirs == kEndless) return note("map", kTheyAreEndless);
  if (theirs == kRefused || ours == kRefused) {
    note("map", openness(theirs != kRefused, ours != kRefused),
         both(qemu_.reason, spindle_.reason));
  } else {
    note("map",
         theirs == "failed" ? "they fail"
         : ours == "failed" ? "we fail"
                            : "says",
         both(theirs == "failed" ? qemu_.reason : theirs,
              ours == "failed" ? spindle_.reason : ours));
  }
}

void Comparison::compare_writing(const Bytes& image) {
  const uint64_t cluster = base_.recipe.cluster_bytes;
  const std::string theirs = qemu_.write(path_, cluster);
  if (theirs == kEndless) {
    reset(image);
    return note("write", kTheyAreEndless);
  }
  Contents after_theirs;
  CheckReport check_theirs;
  if (theirs != kRefused) {
    after_theirs = qemu_.read(path_);
    check_theirs = qemu_.check(path_, "");
    reset(image);
  }
  const std::string ours = spindle_.write(path_, cluster);
  Contents after_ours;
  CheckReport check_ours;
  if (ours != kRefused) {
    after_ours = spindle_.read(path_);
    check_ours = qemu_.check(path_, "");
    reset(image);
  }
  const std::string details = both(qemu_.reason, spindle_.reason);
  const bool is_damaged = damage_left(before_) != 0;
  if (theirs == kCrashed) return;
  if (is_damaged && spindle_.found_damage && theirs != ours) {
    note("write", "we refuse what is damaged", details);
  } else if ((theirs == kRefused) != (ours == kRefused)) {
    note("write", openness(theirs != kRefused, ours != kRefused), details);
  } else if (theirs != ours &&
             (is_damaged ? !absl::StrContains(theirs, "failed")
                         : absl::StrContains(ours, "failed"))) {
    note("write", absl::StrCat(theirs, " | ", ours), details);
  }
  if (ours == kRefused || check_ours.exit_code == kToolTimedOut) return;
  if (damage_left(check_ours) >
      std::max(damage_left(before_), damage_left(check_theirs))) {
    note("write", "then more damage",
         absl::StrCat(details, "\n",
                      both(lines_of(check_theirs), lines_of(check_ours))));
  }
  // Where one cluster belongs to two, the order of writes tells.
  if (theirs != ours || is_damaged) return;
  const std::string kind = compare_contents(after_theirs, after_ours);
  if (!kind.empty()) {
    note("write", absl::StrCat("then ", kind),
         contents_details(after_theirs, after_ours));
  }
}

void Comparison::compare_check() {
  const CheckReport theirs = qemu_.check(path_, "");
  before_ = theirs;
  const CheckReport ours = spindle_.check(path_, "");
  const std::string details = both(lines_of(theirs), lines_of(ours));
  if (theirs.exit_code == kToolTimedOut) return note("check", kTheyAreEndless);
  if (theirs.exit_code != ours.exit_code) {
    note("check",
         absl::StrCat("exit code ", theirs.exit_code, " | ", ours.exit_code),
         details);
  } else if (theirs.failed != ours.failed) {
    note("check", theirs.failed ? "they fail" : "we fail", details);
  } else if (counts_of(theirs) != counts_of(ours)) {
    note("check", "counts", details);
  } else if (!theirs.failed && theirs.lines != ours.lines) {
    note("check", "lines", details);
  }
}

std::optional<Bytes> Comparison::take_file() const {
  std::error_code error;
  if (std::filesystem::file_size(path_, error) > kMaxFileBytes)
    return std::nullopt;
  auto bytes = read_file(path_);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  if (!bytes.ok()) return std::nullopt;
  return *std::move(bytes);
}

void Comparison::compare_repair(const Bytes& image, const std::string& repair) {
  const std::string question = absl::StrCat("repair ", repair);
  const CheckReport theirs = qemu_.check(path_, repair);
  const std::optional<Bytes> their_file = take_file();
  reset(image);
  if (theirs.exit_code == kToolTimedOut) return note(question, kTheyAreEndless);
  const CheckReport ours = spindle_.check(path_, repair);
  const std::optional<Bytes> our_file = take_file();
  const std::string details = both(lines_of(theirs), lines_of(ours));
  if (!our_file.has_value())
    note(question, "our file becomes endless", details);
  if (badness(ours.exit_code) > badness(theirs.exit_code)) {
    note(question,
         absl::StrCat("exit code ", theirs.exit_code, " | ", ours.exit_code),
         details);
  } else if (ours.exit_code == theirs.exit_code &&
             counts_of(ours) == counts_of(theirs) &&
             fixes_of(theirs) != fixes_of(ours)) {
    note(question, "fixes", details);
  }
  if (their_file.has_value() && our_file.has_value() &&
      *their_file != *our_file) {
    const CheckReport our_check = qemu_.check(path_, "");
    const Contents our_contents = spindle_.read(path_);
    reset(*their_file);
    compare_repaired(question, our_check, our_contents, details,
                     /*is_judge=*/!theirs.failed);
  }
  reset(image);
}

void Comparison::compare_repaired(const std::string& question,
                                  const CheckReport& our_check,
                                  const Contents& our_contents,
                                  const std::string& details, bool is_judge) {
  const CheckReport their_check = qemu_.check(path_, "");
  const Contents their_contents = qemu_.read(path_);
  if (our_check.exit_code == kToolTimedOut ||
      their_check.exit_code == kToolTimedOut) {
    return note(question, kTheyAreEndless);
  }
  if (damage_left(our_check) > damage_left(their_check) ||
      leaks_left(our_check) > leaks_left(their_check)) {
    const bool leaks = damage_left(our_check) <= damage_left(their_check);
    note(question, leaks ? "we leave more leaks" : "we leave more damage",
         absl::StrCat(details, "\n then\n",
                      both(lines_of(their_check), lines_of(our_check))));
  }
  // Of theirs there may be nothing left to be read.
  if (!is_judge || (our_contents.opened && !their_contents.opened)) return;
  const std::string kind = compare_contents(their_contents, our_contents);
  if (kind.empty()) return;
  note(question, absl::StrCat("then ", kind),
       absl::StrCat(contents_details(their_contents, our_contents), "\n",
                    details));
}

std::vector<Difference> Comparison::compare(const Bytes& image) {
  differences_.clear();
  reset(image);
  compare_reading();
  compare_map();
  compare_check();
  compare_writing(image);
  compare_repair(image, "leaks");
  compare_repair(image, "all");
  return std::move(differences_);
}

}  // namespace spindle::testing

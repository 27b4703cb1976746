// Files of rows: command lines that QEMU's programs and ours must answer alike.
//
//   # a comment
//   fixture two-layers
//     qemu-img create -q -f raw base.raw 1M
//     qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2
//
//   row info of an overlay
//     given two-layers
//     qemu-img info top.qcow2
//   row ...
//
// What is indented belongs to the line above it.  Within a row a line is one of
//
//   given FIXTURE       the files that are there before; several may be given
//   prepare COMMAND     as a line of a fixture
//   content FILE        the file's bytes may differ: compared are what a guest
//                       sees, `qemu-img check`, and the kinds of entries in
//                       `qemu-img map`
//   placed FILE         the same, and where clusters lie
//   ignore FILE         the file is not compared
//   usage               the space that files take is compared, too
//   disk                runs on a disk's file system, not on tmpfs
//   sorted              the lines of standard output come in any order
//   differs WHAT REASON WHAT (stdout, stderr or files: which ones there are) is
//                       not the same, and shall not be; the exit statuses and
//                       what both have left are
//   COMMAND             run by the shell; its exit status is compared
//
// Thread safety: values and functions without state.
#ifndef SPINDLE_TESTS_TOOLS_ROW_FILE_H_
#define SPINDLE_TESTS_TOOLS_ROW_FILE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace spindle::testing {

enum class FileComparison { kBytes, kContent, kPlacement, kIgnored };

struct Row {
  std::string name;
  int line = 0;
  std::vector<std::string> fixtures;
  std::vector<std::string> preparations;
  std::vector<std::string> commands;
  std::map<std::string, FileComparison> comparisons;  // else kBytes
  bool compare_usage = false;
  bool on_disk = false;
  bool in_any_order = false;
  std::map<std::string, std::string> differences;  // what, why
};

struct RowFile {
  std::map<std::string, std::vector<std::string>> fixtures;
  std::vector<Row> rows;
};

// Errors: kInvalidArgument, with the number of the line.
absl::StatusOr<RowFile> parse_row_file(absl::string_view text);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_TOOLS_ROW_FILE_H_

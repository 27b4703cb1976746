// RowRunner: runs a row's commands twice, in two folders with equal files, once
// with QEMU's programs and once with ours, and says what was not the same.
//
// Ours are called through links with the names of QEMU's.
//
// Thread safety: one thread.
#ifndef SPINDLE_TESTS_TOOLS_ROW_RUNNER_H_
#define SPINDLE_TESTS_TOOLS_ROW_RUNNER_H_

#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/tools/row_file.h"

namespace spindle::testing {

class RowRunner {
 public:
  // `programs`: paths of spindle-img and spindle-io, in this order.
  RowRunner(const RowFile* file, const std::vector<std::string>& programs);
  ~RowRunner();
  RowRunner(const RowRunner&) = delete;
  RowRunner& operator=(const RowRunner&) = delete;

  // What is wrong with the row: nothing if it is empty.
  std::vector<std::string> run(const Row& row);

 private:
  struct Outcome {
    int exit_code = 0;
    std::string output;
    std::string errors;
  };
  enum class Side { kQemu, kOurs };

  // A folder with the files that the row begins with.
  absl::Status prepare(const Row& row, const std::string& folder);
  // The folder of a fixture's files, which is made when it is first asked for.
  absl::StatusOr<std::string> fixture(const std::string& name, bool on_disk);
  absl::StatusOr<Outcome> run_commands(const Row& row, Side side,
                                       const std::string& folder);
  absl::StatusOr<Outcome> run_shell(const std::string& folder, Side side,
                                    const std::string& script);
  void compare_text(const Row& row, const std::string& what,
                    const std::string& expected, const std::string& found);
  void compare_exit_codes(const std::string& expected,
                          const std::string& found);
  void compare_files(const Row& row, const std::string& expected,
                     const std::string& found);
  void compare_file(const Row& row, const std::string& name,
                    const std::string& expected, const std::string& found);
  void compare_content(const std::string& name, bool placement,
                       const std::string& expected, const std::string& found);
  void complain(std::string what) { complaints_.push_back(std::move(what)); }

  const RowFile& file_;
  std::string roots_[2];  // on tmpfs, on a disk
  std::string links_;
  std::set<std::string> fixtures_;
  std::vector<std::string> complaints_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_TOOLS_ROW_RUNNER_H_

// Each row of a file of rows is a test.
//
//   rows_test SPINDLE-IMG SPINDLE-IO FILE
//
// Failures name the row and its line; "--gtest_filter=*words*" runs some of the
// rows.
#include <cctype>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/qemu_tools.h"
#include "tests/tools/row_file.h"
#include "tests/tools/row_runner.h"

namespace spindle::testing {
namespace {

class RowTest : public ::testing::Test {
 public:
  RowTest(RowRunner* runner, const Row* row) : runner_(*runner), row_(*row) {}

  void TestBody() override {
    for (const std::string& complaint : runner_.run(row_)) {
      ADD_FAILURE() << "row \"" << row_.name << "\" (line " << row_.line
                    << "): " << complaint;
    }
  }

 private:
  RowRunner& runner_;
  const Row& row_;
};

// A name of a test has letters, digits and underscores.
std::string test_name(const Row& row) {
  std::string name;
  for (const char c : row.name)
    name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
}

int run_rows(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 4) {
    std::fprintf(stderr, "usage: rows_test SPINDLE-IMG SPINDLE-IO FILE\n");
    return 2;
  }
  const auto bytes = read_file(argv[3]);
  if (!bytes.ok()) {
    std::fprintf(stderr, "%s\n", bytes.status().ToString().c_str());
    return 2;
  }
  const auto file = parse_row_file(std::string(bytes->begin(), bytes->end()));
  if (!file.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[3], file.status().ToString().c_str());
    return 2;
  }
  RowRunner runner(&*file, {argv[1], argv[2]});
  for (const Row& row : file->rows) {
    ::testing::RegisterTest(
        "Rows", test_name(row).c_str(), nullptr, nullptr, argv[3], row.line,
        [&runner, &row] { return new RowTest(&runner, &row); });
  }
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace spindle::testing

int main(int argc, char** argv) {
  return spindle::testing::run_rows(argc, argv);
}

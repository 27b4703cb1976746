// Where two files differ.  Holes are skipped: a file may say it is a terabyte
// long.
//
// Thread safety: a function without state.
#ifndef SPINDLE_TESTS_SUPPORT_FILE_DIFFERENCE_H_
#define SPINDLE_TESTS_SUPPORT_FILE_DIFFERENCE_H_

#include <string>

namespace spindle::testing {

// Words for the first difference in length or bytes; empty if there is none.
std::string find_file_difference(const std::string& expected,
                                 const std::string& found);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_FILE_DIFFERENCE_H_

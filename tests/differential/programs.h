// qemu-img and spindle-img side by side: run with the same arguments, and
// compared.
//
// A test that uses it has //tools:spindle-img among its data.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TESTS_DIFFERENTIAL_PROGRAMS_H_
#define SPINDLE_TESTS_DIFFERENTIAL_PROGRAMS_H_

#include <string>
#include <vector>

#include "tests/support/qemu_tools.h"

namespace spindle::testing {

using Arguments = std::vector<std::string>;

// A name for an image; the file is removed at the end.
class ScratchImage {
 public:
  explicit ScratchImage(const std::string& format);
  ~ScratchImage();
  ScratchImage(const ScratchImage&) = delete;
  ScratchImage& operator=(const ScratchImage&) = delete;

  const ImageFile& image() const { return image_; }
  const std::string& path() const { return image_.path; }
  // The file's bytes.
  std::vector<uint8_t> content() const;
  void set_content(const std::vector<uint8_t>& content) const;

 private:
  const ImageFile image_;
};

enum class Whose { kOurs, kQemus };

// "spindle-img" or "qemu-img"; what ours says is said in the other's name.
SeparateResult run_program(Whose whose, Arguments arguments);

// Both say the same, and end the same.
void expect_same_output(const Arguments& arguments);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DIFFERENTIAL_PROGRAMS_H_

// Asks both implementations the same questions about an image that may be
// damaged, and says where the answers differ.
//
// Thread safety: one thread.
#ifndef SPINDLE_TESTS_DAMAGED_COMPARISON_H_
#define SPINDLE_TESTS_DAMAGED_COMPARISON_H_

#include <optional>
#include <string>
#include <vector>

#include "tests/damaged/base_image.h"
#include "tests/damaged/verdict.h"

namespace spindle::testing {

struct Difference {
  // "info", "read", "map", "write", "check", "repair leaks", "repair all".
  std::string question;
  // What is different, on one line: what a table of intended ones can name.
  std::string kind;
  std::string details;
};

class Comparison {
 public:
  // `base` must outlive it.
  explicit Comparison(const BaseImage& base);
  ~Comparison();

  // `image`: `base`'s bytes, damaged.
  std::vector<Difference> compare(const Bytes& image);

 private:
  // Writes the image to path_, and its companions to where they belong.
  void reset(const Bytes& image);
  void compare_reading();
  void compare_map();
  void compare_writing(const Bytes& image);
  void compare_check();
  void compare_repair(const Bytes& image, const std::string& repair);
  // The two repairs have left different files; theirs is there now.
  // `is_judge`: theirs came to an end.
  void compare_repaired(const std::string& question,
                        const CheckReport& our_check,
                        const Contents& our_contents,
                        const std::string& details, bool is_judge);
  // Nothing if it has become too long to be looked at.
  std::optional<Bytes> take_file() const;
  void note(std::string question, std::string kind, std::string details = "") {
    differences_.push_back(
        {std::move(question), std::move(kind), std::move(details)});
  }

  const BaseImage& base_;
  const std::string path_;
  Qemu qemu_;
  Spindle spindle_;
  // What QEMU's check says of the damaged image.
  CheckReport before_;
  std::vector<Difference> differences_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DAMAGED_COMPARISON_H_

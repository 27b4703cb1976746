// NewFile: a file that a command makes, and takes back unless it finishes.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_NEW_FILE_H_
#define SPINDLE_TOOLS_NEW_FILE_H_

#include <sys/stat.h>

#include <string>

namespace spindle {

class NewFile {
 public:
  // Makes the file, empty, if there is none of that name.
  explicit NewFile(const std::string& filename);
  // If it was made here, and is still the same, removes it.  One that was there
  // before is never removed; if it was overwritten, it becomes empty, so that
  // half an image does not look like a whole one.
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // What was there before is gone.
  void note_overwritten() { is_overwritten_ = true; }
  void keep() { is_kept_ = true; }

 private:
  const std::string filename_;
  struct stat facts_ = {};
  bool made_here_ = false;
  bool is_overwritten_ = false;
  bool is_kept_ = false;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_NEW_FILE_H_

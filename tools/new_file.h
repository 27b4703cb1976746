// NewFile: a file that a command makes, and removes again unless it finishes.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_NEW_FILE_H_
#define SPINDLE_TOOLS_NEW_FILE_H_

#include <sys/stat.h>

#include <string>

namespace spindle {

class NewFile {
 public:
  // Makes the file, empty, if there is none of that name.  One that was there
  // before is never removed.
  explicit NewFile(const std::string& filename);
  // Removes it, if it is still the one that was made here.
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void keep() { made_here_ = false; }

 private:
  const std::string filename_;
  struct stat facts_ = {};
  bool made_here_ = false;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_NEW_FILE_H_

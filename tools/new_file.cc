#include "tools/new_file.h"

#include <fcntl.h>
#include <unistd.h>

namespace spindle {

NewFile::NewFile(const std::string& filename) : filename_(filename) {
  // O_EXCL: whoever succeeds is the one who made it.
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  const int fd = ::open(filename.c_str(), kFlags, 0644);
  if (fd < 0) return;
  made_here_ = ::fstat(fd, &facts_) == 0;
  ::close(fd);
}

NewFile::~NewFile() {
  struct stat now = {};
  if (made_here_ && ::lstat(filename_.c_str(), &now) == 0 &&
      now.st_dev == facts_.st_dev && now.st_ino == facts_.st_ino) {
    ::unlink(filename_.c_str());
  }
}

}  // namespace spindle

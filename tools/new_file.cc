#include "tools/new_file.h"

#include <fcntl.h>
#include <unistd.h>

namespace spindle {

NewFile::NewFile(const std::string& filename) : filename_(filename) {
  // O_EXCL: whoever succeeds is the one who made it.
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  const int fd = ::open(filename.c_str(), kFlags, 0644);
  if (fd < 0) {
    // One that cannot be looked at is left alone.
    if (::stat(filename.c_str(), &facts_) != 0) is_kept_ = true;
    return;
  }
  made_here_ = ::fstat(fd, &facts_) == 0;
  ::close(fd);
}

NewFile::~NewFile() {
  struct stat now = {};
  if (is_kept_ || ::stat(filename_.c_str(), &now) != 0 ||
      now.st_dev != facts_.st_dev || now.st_ino != facts_.st_ino) {
    return;
  }
  if (made_here_) {
    ::unlink(filename_.c_str());
  } else if (is_overwritten_ && S_ISREG(now.st_mode)) {
    // It has failed already: nothing more can be said about it.
    static_cast<void>(::truncate(filename_.c_str(), 0) == 0);
  }
}

}  // namespace spindle

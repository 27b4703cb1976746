// OwnedFd: a file descriptor that is closed when its owner goes.
//
// Thread safety: as an int; the descriptor itself may be used by any thread.
#ifndef SPINDLE_FORMATS_RAW_OWNED_FD_H_
#define SPINDLE_FORMATS_RAW_OWNED_FD_H_

#include <unistd.h>

#include <utility>

namespace spindle {

class OwnedFd {
 public:
  OwnedFd() = default;
  // Takes over `fd`; a negative one means "none".
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~OwnedFd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  int fd_ = -1;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_OWNED_FD_H_

#include "tests/support/file_difference.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace spindle::testing {
namespace {

constexpr size_t kStepBytes = size_t{1} << 20;

class OpenFile {
 public:
  explicit OpenFile(const std::string& path)
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~OpenFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  bool is_open() const { return fd_ >= 0; }
  off_t length() const {
    struct stat facts = {};
    return ::fstat(fd_, &facts) == 0 ? facts.st_size : -1;
  }
  // The next data at or after `offset`, as [first, end): nothing if first is
  // negative.
  struct Data {
    off_t first = -1;
    off_t end = -1;
  };
  Data find_data(off_t offset) const {
    Data data;
    data.first = ::lseek(fd_, offset, SEEK_DATA);
    if (data.first >= 0) data.end = ::lseek(fd_, data.first, SEEK_HOLE);
    return data;
  }
  bool read(off_t offset, std::vector<char>* buffer) const {
    return ::pread(fd_, buffer->data(), buffer->size(), offset) ==
           static_cast<ssize_t>(buffer->size());
  }

 private:
  const int fd_;
};

// Of [first, end), both being at least that long.
std::string compare_range(const OpenFile& expected, const OpenFile& found,
                          OpenFile::Data range) {
  std::vector<char> a;
  std::vector<char> b;
  for (off_t at = range.first; at < range.end;) {
    const size_t length =
        std::min(kStepBytes, static_cast<size_t>(range.end - at));
    a.resize(length);
    b.resize(length);
    if (!expected.read(at, &a) || !found.read(at, &b))
      return absl::StrCat("cannot be read at ", at);
    const auto [x, y] = std::mismatch(a.begin(), a.end(), b.begin());
    if (x != a.end()) {
      return absl::StrFormat(
          "byte 0x%x is %#x, and not %#x", at + (x - a.begin()),
          static_cast<unsigned char>(*y), static_cast<unsigned char>(*x));
    }
    at += static_cast<off_t>(length);
  }
  return "";
}

}  // namespace

std::string find_file_difference(const std::string& expected,
                                 const std::string& found) {
  const OpenFile a(expected);
  const OpenFile b(found);
  if (!a.is_open() || !b.is_open())
    return absl::StrCat("cannot be opened: ", std::strerror(errno));
  if (a.length() != b.length()) {
    return absl::StrCat("is ", b.length(), " bytes long, and not ", a.length());
  }
  for (const OpenFile* file : {&a, &b}) {
    for (off_t at = 0; at < a.length();) {
      const OpenFile::Data data = file->find_data(at);
      if (data.first < 0) break;
      const std::string difference = compare_range(a, b, data);
      if (!difference.empty()) return difference;
      at = data.end;
    }
  }
  return "";
}

}  // namespace spindle::testing

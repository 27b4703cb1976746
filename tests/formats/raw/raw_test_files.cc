#include "tests/formats/raw/raw_test_files.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace spindle::testing {
namespace {

constexpr char kMemoryFolder[] = "/dev/shm";

// Test processes in sandboxes of their own share /dev/shm, and may all believe
// that they have the same process number.
std::string unused_name(ScratchFile::Place place) {
  std::string path = place == ScratchFile::Place::kMemory
                         ? absl::StrCat(kMemoryFolder, "/")
                         : ::testing::TempDir();
  if (path.back() != '/') path += '/';
  path += "spindle_raw_XXXXXX";
  const int fd = ::mkstemp(path.data());
  EXPECT_GE(fd, 0) << path;
  ::close(fd);
  return path;
}

struct stat facts_of(const std::string& path) {
  struct stat facts = {};
  EXPECT_EQ(::stat(path.c_str(), &facts), 0) << path;
  return facts;
}

}  // namespace

ScratchFile::ScratchFile(Place place) : path_(unused_name(place)) {
  ::unlink(path_.c_str());  // the tests make it, each in its own way
}
ScratchFile::~ScratchFile() { ::unlink(path_.c_str()); }

void ScratchFile::write(const std::vector<uint8_t>& content) const {
  std::ofstream out(path_, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(content.data()),
            static_cast<std::streamsize>(content.size()));
  ASSERT_TRUE(out.flush().good()) << path_;
}

std::vector<uint8_t> ScratchFile::content() const {
  std::ifstream in(path_, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

uint64_t ScratchFile::length() const {
  return static_cast<uint64_t>(facts_of(path_).st_size);
}
uint64_t ScratchFile::allocated_bytes() const {
  return static_cast<uint64_t>(facts_of(path_).st_blocks) * 512;
}

bool has_memory_place() {
  struct statfs file_system = {};
  return ::statfs(kMemoryFolder, &file_system) == 0 &&
         file_system.f_type == TMPFS_MAGIC &&
         ::access(kMemoryFolder, W_OK) == 0;
}

OpenOptions flipped(std::initializer_list<bool OpenOptions::*> flags) {
  OpenOptions options;
  for (bool OpenOptions::* flag : flags) options.*flag = !(options.*flag);
  return options;
}

absl::Status make_with_qemu(const ImageFile& image, uint64_t size_bytes,
                            const std::string& options) {
  QemuCreate create;
  create.image = image;
  create.size_bytes = size_bytes;
  create.options = options;
  return qemu_create(create);
}

std::vector<uint8_t> pattern(size_t length, uint32_t seed) {
  std::vector<uint8_t> bytes(length);
  uint32_t state = seed * 2654435761u + 1;
  for (uint8_t& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<uint8_t>((state >> 24) | 1);  // never zero
  }
  return bytes;
}

AlignedMemory::AlignedMemory(size_t length, uint8_t fill)
    : length_(length), data_(nullptr) {
  void* memory = nullptr;
  if (::posix_memalign(&memory, 65536, length == 0 ? 1 : length) != 0)
    std::abort();
  data_ = static_cast<uint8_t*>(memory);
  std::memset(data_, fill, length);
}
AlignedMemory::AlignedMemory(const std::vector<uint8_t>& content)
    : AlignedMemory(content.size()) {
  std::memcpy(data_, content.data(), content.size());
}
AlignedMemory::~AlignedMemory() { std::free(data_); }

std::set<int> locked_bytes(const std::string& path) {
  std::set<int> locked;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_GE(fd, 0) << path;
  for (const int base : {100, 200}) {
    for (int i = 0; i < 10; ++i) {
      struct flock lock = {};
      lock.l_type = F_WRLCK;
      lock.l_whence = SEEK_SET;
      lock.l_start = base + i;
      lock.l_len = 1;
      EXPECT_EQ(::fcntl(fd, F_OFD_GETLK, &lock), 0);
      if (lock.l_type != F_UNLCK) locked.insert(base + i);
    }
  }
  ::close(fd);
  return locked;
}

}  // namespace spindle::testing

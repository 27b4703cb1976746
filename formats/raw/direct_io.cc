#include "formats/raw/direct_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/sector.h"

namespace spindle {
namespace {

constexpr uint32_t kSmallestAlignment = kSectorSizeBytes;
constexpr uint32_t kAssumedAlignment = 4096;
constexpr uint32_t kLargestAlignment = 64 * 1024;

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};

absl::Status no_direct_io(absl::string_view filename) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", filename,
                   "' cannot be opened without the page cache: its file system "
                   "does not support "
                   "O_DIRECT for it"));
}

// What the kernel says; nothing if it does not say.  An alignment of 0 means
// that there are no direct transfers.
std::optional<uint32_t> stated_alignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx facts = {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) != 0)
    return std::nullopt;
  if ((facts.stx_mask & STATX_DIOALIGN) == 0) return std::nullopt;
  if (facts.stx_dio_offset_align == 0) return 0;
  return std::max(facts.stx_dio_offset_align, facts.stx_dio_mem_align);
#else
  static_cast<void>(fd);
  return std::nullopt;
#endif
}

std::optional<uint32_t> block_device_alignment(int fd) {
  int logical_block_size = 0;
  if (::ioctl(fd, BLKSSZGET, &logical_block_size) != 0) return std::nullopt;
  if (logical_block_size <= 0) return std::nullopt;
  return static_cast<uint32_t>(logical_block_size);
}

// Memory aligned to `alignment` and to no more, so that a read into it proves
// something about addresses too.
absl::StatusOr<uint32_t> tried_alignment(int fd, absl::string_view filename) {
  struct stat facts = {};
  if (::fstat(fd, &facts) != 0) {
    return errno_status(errno, absl::StrCat("fstat of '", filename, "'"));
  }
  // Beyond the end of the file the kernel need not look at the alignment.
  if (facts.st_size < static_cast<off_t>(kLargestAlignment))
    return kAssumedAlignment;

  void* memory = nullptr;
  if (::posix_memalign(&memory, kLargestAlignment,
                       size_t{2} * kLargestAlignment) != 0) {
    return errno_status(ENOMEM, "allocating a buffer to try direct reads");
  }
  const std::unique_ptr<void, FreeDeleter> owner(memory);
  for (uint32_t alignment = kSmallestAlignment; alignment <= kLargestAlignment;
       alignment *= 2) {
    ssize_t got;
    do {
      got = ::pread(fd, static_cast<char*>(memory) + alignment, alignment, 0);
    } while (got < 0 && errno == EINTR);
    if (got >= 0) return alignment;
    if (errno != EINVAL)
      return errno_status(errno,
                          absl::StrCat("direct read of '", filename, "'"));
  }
  return no_direct_io(filename);
}

}  // namespace

absl::StatusOr<uint32_t> find_direct_io_alignment(int fd,
                                                  absl::string_view filename) {
  std::optional<uint32_t> alignment = block_device_alignment(fd);
  if (!alignment.has_value()) alignment = stated_alignment(fd);
  if (!alignment.has_value()) {
    const absl::StatusOr<uint32_t> tried = tried_alignment(fd, filename);
    if (!tried.ok()) return tried.status();
    alignment = *tried;
  }
  if (*alignment == 0 || !is_power_of_two(*alignment))
    return no_direct_io(filename);
  return std::max(*alignment, kSmallestAlignment);
}

}  // namespace spindle

#include "formats/raw/create_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "engine/option_values.h"
#include "engine/sector.h"
#include "formats/raw/fd_io.h"
#include "formats/raw/file_locks.h"
#include "formats/raw/owned_fd.h"

namespace spindle {
namespace {

constexpr mode_t kImageMode = 0644;
// The first block of a sparse image is written, so that whoever opens it with
// O_DIRECT can find the alignment out by reading.
constexpr uint64_t kFirstBlockBytes = 4096;

absl::Status bad_value(absl::string_view name, absl::string_view value,
                       absl::string_view wanted) {
  return with_qemu_words(
      absl::InvalidArgumentError(absl::StrCat(
          "invalid value '", value, "' of '", name, "': expected ", wanted)),
      absl::StrCat("invalid parameter value: ", value));
}

absl::Status parse_preallocation(const std::string& value,
                                 FilePreallocation* out) {
  if (value == "off") {
    *out = FilePreallocation::kOff;
  } else if (value == "falloc") {
    *out = FilePreallocation::kFallocate;
  } else if (value == "full") {
    *out = FilePreallocation::kFull;
  } else if (value == "metadata") {
    *out = FilePreallocation::kMetadata;
  } else {
    return bad_value("preallocation", value, "off, falloc or full");
  }
  return absl::OkStatus();
}

absl::Status parse_extent_size_hint(const std::string& value, uint32_t* out) {
  const absl::StatusOr<uint64_t> bytes =
      parse_size_option("extent_size_hint", value);
  if (!bytes.ok()) return bytes.status();
  if (*bytes > std::numeric_limits<uint32_t>::max()) {
    return with_qemu_words(
        bad_value("extent_size_hint", value, "less than 4 GiB"),
        "Extent size hint is too large");
  }
  *out = static_cast<uint32_t>(*bytes);
  return absl::OkStatus();
}

absl::Status parse_nocow(const std::string& value, bool* out) {
  const absl::StatusOr<bool> nocow = parse_bool_option("nocow", value);
  if (nocow.ok()) *out = *nocow;
  return nocow.status();
}

absl::Status call_error(absl::string_view call, const std::string& filename) {
  return errno_status(errno, absl::StrCat(call, " of '", filename, "'"));
}

// Both are wishes; a file system that does not know them is none the worse.
void set_wishes(int fd, const FileCreateOptions& options, const LogSink& log) {
  if (options.nocow) {
    int flags = 0;
    if (::ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
      flags |= FS_NOCOW_FL;
      ::ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
  }
  if (options.extent_size_hint_bytes != 0) {
    struct fsxattr attributes = {};
    int result = ::ioctl(fd, FS_IOC_FSGETXATTR, &attributes);
    if (result == 0) {
      attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
      attributes.fsx_extsize = options.extent_size_hint_bytes;
      result = ::ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
    }
    if (result != 0 && options.extent_size_hint_given && log) {
      log(LogSeverity::kWarning,
          absl::StrCat("Failed to set extent size hint: ",
                       std::strerror(errno)));
    }
  }
}

absl::Status write_zero_bytes(int fd, uint64_t length_bytes,
                              const std::string& filename) {
  constexpr uint64_t kBufferBytes = uint64_t{64} << 10;
  std::vector<uint8_t> zeroes(std::min(length_bytes, kBufferBytes));
  for (uint64_t done = 0; done < length_bytes;) {
    const uint64_t piece =
        std::min<uint64_t>(length_bytes - done, zeroes.size());
    const Transfer transfer = write_fully(
        fd, IoVector(zeroes.data(), zeroes.size()), 0, piece, done, 1);
    if (transfer.error_number != 0) {
      return errno_status(transfer.error_number,
                          absl::StrCat("writing zeroes to '", filename, "'"));
    }
    done += transfer.bytes;
  }
  return absl::OkStatus();
}

absl::Status give_length(int fd, uint64_t length_bytes,
                         FilePreallocation preallocation,
                         const std::string& filename) {
  const auto length = static_cast<off_t>(length_bytes);
  if (preallocation == FilePreallocation::kFull) {
    absl::Status status = write_zero_bytes(fd, length_bytes, filename);
    if (!status.ok()) return status;
    if (::fsync(fd) != 0) return call_error("fsync", filename);
    return absl::OkStatus();
  }
  if (preallocation == FilePreallocation::kFallocate && length_bytes > 0) {
    // posix_fallocate writes where the file system cannot reserve.
    const int error_number = ::posix_fallocate(fd, 0, length);
    if (error_number != 0) {
      return errno_status(error_number,
                          absl::StrCat("posix_fallocate of '", filename, "'"));
    }
  } else if (::ftruncate(fd, length) != 0) {
    return call_error("ftruncate", filename);
  }
  const uint64_t first_block_bytes =
      length_bytes < kFirstBlockBytes ? kSectorSizeBytes : kFirstBlockBytes;
  return write_zero_bytes(fd, std::min(length_bytes, first_block_bytes),
                          filename);
}

absl::Status fill_file(int fd, uint64_t length_bytes,
                       const FileCreateOptions& options, const LogSink& log,
                       const std::string& filename) {
  struct stat facts = {};
  if (::fstat(fd, &facts) != 0) return call_error("fstat", filename);
  if (!S_ISREG(facts.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", filename, "' is not a regular file"));
  }
  absl::Status locked = change_file_locks(fd, kNoUse, kCreatorUse, filename);
  if (!locked.ok()) return locked;
  if (::ftruncate(fd, 0) != 0) return call_error("ftruncate", filename);
  set_wishes(fd, options, log);
  absl::Status status =
      give_length(fd, length_bytes, options.preallocation, filename);
  // What it held is gone; half an image is of no use, and takes space.  The
  // first error counts.
  if (!status.ok()) static_cast<void>(::ftruncate(fd, 0) == 0);
  return status;
}

}  // namespace

absl::StatusOr<FileCreateOptions> parse_file_create_options(
    const OptionMap& options) {
  FileCreateOptions parsed;
  for (const auto& [name, value] : options) {
    absl::Status status;
    if (name == "preallocation") {
      status = parse_preallocation(value, &parsed.preallocation);
    } else if (name == "nocow") {
      status = parse_nocow(value, &parsed.nocow);
    } else if (name == "extent_size_hint") {
      status = parse_extent_size_hint(value, &parsed.extent_size_hint_bytes);
      parsed.extent_size_hint_given = true;
    } else {
      status = absl::InvalidArgumentError(
          absl::StrCat("Invalid parameter '", name, "'"));
    }
    if (!status.ok()) return status;
  }
  return parsed;
}

std::vector<OptionHelp> file_create_options() {
  return {
      {"extent_size_hint", "<size>",
       "Extent size hint for the image file, 0 to disable"},
      {"nocow", "<bool (on/off)>",
       "Turn off copy-on-write (valid only on btrfs)"},
      {"preallocation", "<str>",
       "Preallocation mode (allowed values: off, falloc, full)"},
  };
}

absl::Status create_file(const std::string& filename, uint64_t length_bytes,
                         const FileCreateOptions& options, const LogSink& log) {
  if (length_bytes > static_cast<uint64_t>(std::numeric_limits<off_t>::max())) {
    return errno_status(EFBIG, absl::StrCat("creating '", filename, "'"));
  }
  if (options.preallocation == FilePreallocation::kMetadata) {
    return with_qemu_words(
        absl::InvalidArgumentError(absl::StrCat(
            "Unsupported preallocation mode 'metadata' for '", filename, "'")),
        "Unsupported preallocation mode: metadata");
  }
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  OwnedFd fd(::open(filename.c_str(), kFlags | O_EXCL, kImageMode));
  const bool made_here = fd.valid();
  if (!made_here && errno == EEXIST)
    fd = OwnedFd(::open(filename.c_str(), kFlags, kImageMode));
  if (!fd.valid())
    return errno_status(errno,
                        absl::StrCat("Could not create '", filename, "'"));

  absl::Status status =
      fill_file(fd.get(), length_bytes, options, log, filename);
  if (!status.ok() && made_here) ::unlink(filename.c_str());
  return status;
}

}  // namespace spindle

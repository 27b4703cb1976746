// The byte-range locks by which programs agree on who may use an image file, as
// QEMU 7.2 takes them (observed with strace and /proc/locks):
//
//   byte 100 + n  read-locked: the holder uses permission n
//   byte 200 + n  read-locked: the holder lets nobody else use permission n
//
// with n = 0 consistent read, 1 write, 2 write unchanged, 3 resize.  All locks
// are read locks, so taking them never conflicts; whoever has taken his own
// looks whether somebody else holds one that contradicts them.  They are "open
// file description" locks: they belong to what one open() gave, are shared by
// its duplicates and by forked children, and vanish with the last of them.
//
// Thread safety: pure functions on a descriptor; the owner of the descriptor
// serialises them.
#ifndef SPINDLE_FORMATS_RAW_FILE_LOCKS_H_
#define SPINDLE_FORMATS_RAW_FILE_LOCKS_H_

#include <cstdint>
#include <initializer_list>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace spindle {

enum class FilePermission : uint8_t {
  kConsistentRead = 0,
  kWrite = 1,
  kWriteUnchanged = 2,
  kResize = 3,
};
inline constexpr int kFilePermissionCount = 4;

class FilePermissions {
 public:
  constexpr FilePermissions() = default;
  constexpr FilePermissions(std::initializer_list<FilePermission> list) {
    for (FilePermission p : list) bits_ |= 1u << static_cast<uint8_t>(p);
  }
  constexpr bool has(FilePermission p) const {
    return (bits_ & (1u << static_cast<uint8_t>(p))) != 0;
  }
  constexpr FilePermissions operator|(FilePermissions other) const {
    FilePermissions both;
    both.bits_ = bits_ | other.bits_;
    return both;
  }
  constexpr bool operator==(const FilePermissions&) const = default;

 private:
  uint32_t bits_ = 0;
};

// What one user of a file does with it, and what others must not do meanwhile.
struct FileUse {
  FilePermissions used;
  FilePermissions denied;
  constexpr bool operator==(const FileUse&) const = default;
};

// As QEMU opens the file of an image: writing forbids others to write or to
// resize, reading forbids it too, and a forced reader (-U) forbids nothing.
inline constexpr FileUse kNoUse{};
inline constexpr FileUse kReaderUse{
    {FilePermission::kConsistentRead},
    {FilePermission::kWrite, FilePermission::kResize}};
inline constexpr FileUse kForcedReaderUse{{FilePermission::kConsistentRead},
                                          {}};
inline constexpr FileUse kWriterUse{
    {FilePermission::kConsistentRead, FilePermission::kWrite,
     FilePermission::kResize},
    {FilePermission::kWrite, FilePermission::kResize}};
// As `qemu-img create` treats a file that is already there.
inline constexpr FileUse kCreatorUse{
    {FilePermission::kWrite, FilePermission::kResize},
    {FilePermission::kResize}};

// Locks on `fd` exactly the bytes of `use`: missing ones are locked, others
// unlocked.  Does not look at other users.
absl::Status set_file_locks(int fd, const FileUse& use,
                            absl::string_view filename);

// Looks whether somebody else's locks contradict `use`.
// Errors: kUnavailable, with the message that users know ("Failed to get
// "write" lock").
absl::Status check_file_locks(int fd, const FileUse& use,
                              absl::string_view filename);

// Changes the locks on `fd` from `from` to `to`: takes what is new, looks, and
// goes back to `from` on a conflict; nobody sees a moment without `from`.
absl::Status change_file_locks(int fd, const FileUse& from, const FileUse& to,
                               absl::string_view filename);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_FILE_LOCKS_H_

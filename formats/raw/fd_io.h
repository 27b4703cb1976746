// Whole transfers between an IoVector and a file descriptor: what the kernel
// cuts short or interrupts is continued, and what it would not take in one call
// (IOV_MAX segments, 0x7ffff000 bytes) is split.
//
// Thread safety: pure functions; they use no file position.
#ifndef SPINDLE_FORMATS_RAW_FD_IO_H_
#define SPINDLE_FORMATS_RAW_FD_IO_H_

#include <cstdint>

#include "engine/io_vector.h"

namespace spindle {

// How far a transfer came, and the errno that stopped it.  Fewer bytes than
// asked for and no error: the file ended.
struct Transfer {
  uint64_t bytes = 0;
  int error_number = 0;
};

// Fills `qiov` from byte `offset` of `fd` on.  `unit_bytes`: every system call
// begins at a multiple of it, a power of two (1, or what O_DIRECT asks for).
// REQUIRES: offset, and for units above 1 each segment's length, are multiples
// of unit_bytes.
Transfer read_fully(int fd, const IoVector& qiov, uint64_t offset,
                    uint32_t unit_bytes);

// Writes the bytes [skip, skip + length) of `qiov` to byte `offset` of `fd` on.
// REQUIRES: as above for offset, skip and length; the bytes lie within `qiov`.
Transfer write_fully(int fd, const IoVector& qiov, uint64_t skip_bytes,
                     uint64_t length_bytes, uint64_t offset,
                     uint32_t unit_bytes);

// One preadv2(RWF_NOWAIT), of at most IOV_MAX segments: what it gave, or its
// errno.
Transfer read_without_waiting(int fd, const IoVector& qiov, uint64_t offset);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_FD_IO_H_

// What a request asks for, apart from the memory that it names.
//
// Thread safety: values.
#ifndef SPINDLE_ENGINE_REQUEST_H_
#define SPINDLE_ENGINE_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <limits>

#include "engine/block_driver.h"
#include "engine/sector.h"

namespace spindle {

enum class RequestKind {
  kRead,
  kWrite,
  kFlush,
  kDiscard,
  kWriteZeroes,
  kWriteCompressed,
  kBlockStatus
};
inline constexpr size_t kRequestKindCount = 7;

struct WriteFlags {
  // Force unit access: durable when it completes.
  bool fua = false;
};

// What becomes of writes that are all zeroes.
enum class DetectZeroes { kOff, kOn, kUnmap };

// Offset and length are as the caller gave them: nobody has checked them yet.
struct RequestSpec {
  RequestKind kind = RequestKind::kRead;
  // Offset and length must be multiples of 512, and may reach to the end of the
  // last, partial sector.
  bool by_sector = false;
  WriteFlags write_flags = {};
  WriteZeroesFlags zeroes_flags = {};
  BlockStatusScope scope = BlockStatusScope::kWholeChain;
  uint64_t offset = 0;
  uint64_t length = 0;

  // REQUIRES: the request was checked.
  ByteRange range() const { return {offset, length}; }
};

// The byte offset of `sector`; beyond every image if it does not fit.
constexpr uint64_t saturated_byte_offset(Sector sector) {
  constexpr uint64_t kLast =
      std::numeric_limits<uint64_t>::max() >> kSectorBits;
  return (sector.index() > kLast ? kLast : sector.index()) << kSectorBits;
}

}  // namespace spindle

#endif  // SPINDLE_ENGINE_REQUEST_H_

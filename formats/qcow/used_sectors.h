// UsedSectors: which sectors of the file a check has found in use, to see what
// is used twice.
//
// Two bits for each sector: somebody has all of it, or part of it.  Compressed
// data may share a sector: some writers pack them by the byte.
//
// Thread safety: one thread.
#ifndef SPINDLE_FORMATS_QCOW_USED_SECTORS_H_
#define SPINDLE_FORMATS_QCOW_USED_SECTORS_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/sector.h"

namespace spindle::qcow {

class UsedSectors {
 public:
  // Errors: kResourceExhausted if there is not enough memory.
  static absl::StatusOr<UsedSectors> create(uint64_t sector_count);

  // Enters `range`.  False if part of it is in use, as far as that can be told;
  // it is entered all the same.
  // REQUIRES: !range.empty(), it ends within the sectors.
  bool add(ByteRange range);

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };
  using Bytes = std::unique_ptr<uint8_t, Free>;

  explicit UsedSectors(Bytes bytes) : bytes_(std::move(bytes)) {}
  bool add_sector(uint64_t sector, bool is_whole);

  // From calloc(): pages that nobody touches take no memory.
  Bytes bytes_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_USED_SECTORS_H_

// BlockMap: which block of the file holds each block of the disk.
//
// The whole map is kept in memory.  A block of the file is free if no entry
// names it, whatever the header says; the lowest free one is taken next, which
// in an image without damage is the one behind the last, as in QEMU.  What
// changes is written by whoever calls take_changes().
//
// Thread safety: none; the driver guards it with its mutex.
#ifndef SPINDLE_FORMATS_VDI_BLOCK_MAP_H_
#define SPINDLE_FORMATS_VDI_BLOCK_MAP_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace spindle::vdi {

class BlockMap {
 public:
  explicit BlockMap(std::vector<uint32_t> entries);

  const std::vector<uint32_t>& entries() const { return entries_; }
  // The block of the file; nothing if there is none: zeroes.
  // REQUIRES: index < entries().size().
  std::optional<uint32_t> find(uint32_t index) const;

  // Called once, before the map is changed.
  // Errors: kDataLoss if an entry is out of range, or two are the same: a write
  // might hit another block's data.
  absl::Status prepare_for_changes();

  // Takes the lowest free block for one of the disk.  Nothing if there is none,
  // which prepare_for_changes() rules out.
  std::optional<uint32_t> take_free();
  void give_back(uint32_t block);
  // REQUIRES: `block` was taken, and its content is written.
  void set(uint32_t index, uint32_t block);

  // Whole sectors of the map, as they stand in the file, and what goes with
  // them into the header.
  struct Changes {
    struct Run {
      uint64_t offset = 0;  // from the start of the map
      std::string bytes;
    };
    std::vector<Run> runs;
    // One past the last block taken: QEMU and VirtualBox take that one next.
    uint32_t allocated_count = 0;
  };
  // What changed since the last call.
  Changes take_changes();
  // They could not be written: they are due again.
  void put_back(const Changes& changes);

 private:
  std::vector<uint32_t> entries_;
  std::set<uint64_t> dirty_sectors_;  // of the map
  std::vector<bool> taken_;           // blocks of the file; empty: read only
  uint32_t lowest_free_ = 0;          // all below are taken
  uint32_t taken_end_ = 0;            // none from here on is taken
};

}  // namespace spindle::vdi

#endif  // SPINDLE_FORMATS_VDI_BLOCK_MAP_H_

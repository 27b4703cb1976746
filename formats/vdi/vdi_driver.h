// VdiDriver: a VirtualBox disk image, read and written.
//
// It knows linear buffers only, and its calls may overlap: one mutex guards
// what is in memory, and is never held while the file is read or written.
// Everything vectored comes from BounceDriver, everything asynchronous from the
// generic layer.
//
// Blocks of the disk never move, and never go away; so a place that was looked
// up stays true without the lock.  The first write to a block writes it whole,
// with zeroes around the data, to a block of the file that no entry names, and
// then enters it into the map.  The file's map follows with the next flush:
//
//   1. header: how many blocks of the file are in use
//   2. sync: the blocks that were written, and the header, are durable
//   3. block map
//   4. sync
//
// so after a power cut every entry names a block that was written before, and
// that the header counts.  At worst a block of the file is in use by nobody;
// the next first write takes it.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_FORMATS_VDI_VDI_DRIVER_H_
#define SPINDLE_FORMATS_VDI_VDI_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/format.h"
#include "engine/image_check.h"
#include "engine/linear_driver.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "engine/sector.h"
#include "formats/vdi/block_map.h"
#include "formats/vdi/header.h"
#include "formats/vdi/layout.h"

namespace spindle::vdi {

// The image in `file`, behind a BounceDriver.
// Errors: as parse_header(), and kDataLoss if it shall be written to and its
// block map is damaged.
absl::StatusOr<std::shared_ptr<BlockDriver>> open_vdi(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options);

class VdiDriver final : public LinearDriver {
 public:
  // `map` has been prepared for changes unless `read_only`.
  VdiDriver(std::shared_ptr<BlockDriver> file, const Header& header,
            BlockMap map, bool read_only);

  absl::Status read(void* to, size_t length_bytes,
                    uint64_t offset_bytes) override;
  absl::Status write(const void* from, size_t length_bytes,
                     uint64_t offset_bytes) override;
  absl::Status flush() override ABSL_LOCKS_EXCLUDED(mutex_);

  absl::string_view format_name() const override { return "vdi"; }
  std::string filename() const override { return file_.child().filename(); }
  uint64_t length_bytes() const override { return header_.disk_bytes; }
  bool read_only() const override { return read_only_; }
  bool one_at_a_time() const override { return false; }
  uint32_t optimal_transfer_bytes() const override { return kBlockBytes; }
  std::optional<StorageIdentity> identity() const override {
    return file_.child().identity();
  }
  BlockDriver* below() const override { return &file_.child(); }
  void add_to_info(ImageInfo* info) const override;

  Capabilities capabilities() const override {
    return {Capability::kBlockStatus, Capability::kCheck};
  }
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Errors: kUnimplemented if anything shall be repaired, as in QEMU.
  absl::StatusOr<CheckResult> check(const CheckOptions& options) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status close() override;

 private:
  // A range of the disk within one block.
  struct Piece {
    uint32_t index;   // the block of the disk
    uint32_t offset;  // in the block
    size_t length_bytes;
  };
  static Piece first_piece(uint64_t offset_bytes, size_t length_bytes);
  uint64_t place_of(uint32_t block, uint32_t offset) const {
    return header_.data_offset + uint64_t{block} * kBlockBytes + offset;
  }

  std::optional<uint32_t> find(uint32_t index) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status write_piece(const Piece& piece, const uint8_t* from)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status write_first(const Piece& piece, const uint8_t* from,
                           uint32_t block);
  absl::Status write_changes(const BlockMap::Changes& changes);

  const Header header_;
  const bool read_only_;
  ByteChannel file_;

  // Guards what is in memory; never held across file I/O.
  mutable MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::mapping_changes)
      ABSL_ACQUIRED_BEFORE(lock_ranks::flush){LockRank::kMappingChanges};
  BlockMap map_ ABSL_GUARDED_BY(mutex_);
  // Blocks of the disk whose first write is under way.
  std::set<uint32_t> first_writes_ ABSL_GUARDED_BY(mutex_);
  bool flushing_ ABSL_GUARDED_BY(mutex_) = false;
  // What the file's header says.
  uint32_t allocated_count_ ABSL_GUARDED_BY(mutex_);
  absl::CondVar changed_;  // a first write, or a flush, has ended
};

}  // namespace spindle::vdi

#endif  // SPINDLE_FORMATS_VDI_VDI_DRIVER_H_

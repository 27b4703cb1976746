// Image: the parts of one open qcow image, wired together.
//
// It owns every part and hands out references; the parts know only what their
// own headers name.  Who uses them: DataReader, DataWriter, CompressedWriter,
// StatusReader, and the driver, which is thin.
//
// Thread safety: the parts are thread-safe; opening and prepare_for_writing()
// are for one thread, with no other call in progress.
#ifndef SPINDLE_FORMATS_QCOW_IMAGE_H_
#define SPINDLE_FORMATS_QCOW_IMAGE_H_

#include <algorithm>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/format.h"
#include "formats/cluster/corruption.h"
#include "formats/cluster/data_transfer.h"
#include "formats/cluster/first_writes.h"
#include "formats/cluster/inflated_copies.h"
#include "formats/cluster/l1_table.h"
#include "formats/cluster/metadata_extents.h"
#include "formats/cluster/table_cache.h"
#include "formats/crypto/encrypted_transfer.h"
#include "formats/qcow/address.h"
#include "formats/qcow/allocator.h"
#include "formats/qcow/cluster_map.h"
#include "formats/qcow/flush_rounds.h"
#include "formats/qcow/header.h"
#include "formats/qcow/runtime_options.h"

namespace spindle::qcow {

class Image {
 public:
  // Reads the L1 table; writes nothing.  `header` is that of the image in
  // `file`.  `backing` is null where there is none, and `encrypted`, which must
  // outlive this, where the image is not encrypted.
  static absl::StatusOr<std::unique_ptr<Image>> open(
      std::shared_ptr<BlockDriver> file, std::shared_ptr<BlockDriver> backing,
      const crypto::EncryptedTransfer* encrypted, const Header& header,
      const RuntimeOptions& options, LogSink log);

  // Checks that the image's tables lie in the file and do not overlap.  Before
  // the first write; again is fine.
  absl::Status prepare_for_writing();

  const Header& header() const { return header_; }
  const Geometry& geometry() const { return geometry_; }

  ByteChannel& file() { return file_; }
  // What moves guest data.
  const DataTransfer& transfer() const { return transfer_; }
  // Null if there is none.
  ByteChannel* backing() { return backing_.get(); }
  // True if the backing file shows through at `guest`.
  bool has_backing_at(GuestOffset guest) const {
    return backing_ != nullptr && guest.bytes < backing_end();
  }
  // Where it ends, in this disk.
  uint64_t backing_end() const {
    return std::min(backing_->length_bytes(), geometry_.size_bytes);
  }

  MetadataExtents& extents() { return extents_; }
  Corruption& corruption() { return corruption_; }
  FirstWrites& first_writes() { return first_writes_; }
  InflatedCopies& inflated() { return inflated_; }
  L1Table& l1() { return l1_; }
  Allocator& allocator() { return allocator_; }
  ClusterMap& map() { return map_; }
  FlushRounds& rounds() { return rounds_; }

 private:
  Image(std::shared_ptr<BlockDriver> file, std::shared_ptr<BlockDriver> backing,
        const crypto::EncryptedTransfer* encrypted, const Header& header,
        const RuntimeOptions& options, LogSink log);

  const Header header_;
  const Geometry geometry_;
  bool prepared_for_writing_ = false;

  ByteChannel file_;
  const DataTransfer transfer_;
  const std::unique_ptr<ByteChannel> backing_;
  MetadataExtents extents_;
  Corruption corruption_;
  FirstWrites first_writes_;
  InflatedCopies inflated_;
  TableCache l2_tables_;
  L1Table l1_;
  Allocator allocator_;
  FlushRounds rounds_;
  ClusterMap map_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_IMAGE_H_

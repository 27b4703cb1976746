// Image: the parts of one open qcow2 image, wired together.
//
// It owns every part and hands out references; the parts know only what their
// own headers name.  Who uses them: DataReader, DataWriter, MappingChanger, and
// the driver, which is thin.
//
// Thread safety: the parts are thread-safe; opening and prepare_for_writing()
// are for one thread, with no other call in progress.
#ifndef SPINDLE_FORMATS_QCOW2_IMAGE_H_
#define SPINDLE_FORMATS_QCOW2_IMAGE_H_

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
#include "formats/cluster/in_flight.h"
#include "formats/cluster/inflated_copies.h"
#include "formats/cluster/l1_table.h"
#include "formats/cluster/metadata_extents.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/cluster_map.h"
#include "formats/qcow2/corrupt_bit.h"
#include "formats/qcow2/data_clusters.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/flush_rounds.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/kept_discards.h"
#include "formats/qcow2/pending_frees.h"
#include "formats/qcow2/runtime_options.h"

namespace spindle::qcow2 {

class Image {
 public:
  // Reads and validates the header and the L1 table; writes nothing.  `backing`
  // and `data_file` are null where there is none, `encryption`, which must
  // outlive this, where the image is not encrypted.
  static absl::StatusOr<std::unique_ptr<Image>> open(
      std::shared_ptr<BlockDriver> file, std::shared_ptr<BlockDriver> backing,
      const Header& header, const RuntimeOptions& options, LogSink log,
      std::shared_ptr<BlockDriver> data_file = nullptr,
      const Encryption* encryption = nullptr);

  // Reads the refcount table, checks that the image's tables do not overlap,
  // and clears unknown autoclear bits.  Before the first write; again is fine.
  absl::Status prepare_for_writing();
  bool prepared_for_writing() const { return prepared_for_writing_; }

  // Metadata operations, too, take clusters as QEMU does (reuse=lowest).
  bool places_like_qemu() const {
    return options_.reuse == ReusePolicy::kLowest;
  }

  // What is discarded keeps its host cluster (discard-no-unref).
  bool keeps_discarded() const { return options_.discard_no_unref; }
  // ... which is punched all the same, if it may be.
  bool punches_holes() const { return options_.punch_holes; }

  // As it was when the image was opened.
  const Header& header() const { return header_; }
  const Geometry& geometry() const { return geometry_; }

  ByteChannel& file() { return file_; }
  // Where guest data live: file(), or an external data file.
  ByteChannel& data() { return data_clusters_.channel(); }
  // What moves them.
  const DataTransfer& transfer() const { return transfer_; }
  const DataClusters& data_clusters() const { return data_clusters_; }
  // Null if there is none.
  ByteChannel* backing() { return backing_.get(); }
  // True if the backing file has content of its own at or after `guest`.
  bool has_backing_at(GuestOffset guest) const;

  // The image's length is another; the disk has it already.
  // REQUIRES: nothing else is under way (the gate is closed).
  void set_size(uint64_t size_bytes) { geometry_.size_bytes = size_bytes; }
  // What the table caches may hold from now on.
  void set_cache_sizes(const RuntimeOptions& options);

  InFlight& in_flight() { return in_flight_; }
  PendingFrees& pending() { return pending_; }
  MetadataExtents& extents() { return extents_; }
  Corruption& corruption() { return corruption_; }
  FirstWrites& first_writes() { return first_writes_; }
  InflatedCopies& inflated() { return inflated_; }
  TableCache& l2_tables() { return l2_tables_; }
  TableCache& refblocks() { return refblocks_; }
  L1Table& l1() { return l1_; }
  Allocator& allocator() { return allocator_; }
  FlushRounds& rounds() { return rounds_; }
  ClusterMap& map() { return map_; }
  KeptDiscards& kept_discards() { return kept_discards_; }

 private:
  Image(std::shared_ptr<BlockDriver> file, std::shared_ptr<BlockDriver> backing,
        const Header& header, const RuntimeOptions& options, LogSink log,
        std::shared_ptr<BlockDriver> data_file, const Encryption* encryption);

  absl::Status enter_extents();

  const Header header_;
  const RuntimeOptions options_;
  // Its size changes in set_size(), the rest never.
  Geometry geometry_;
  bool prepared_for_writing_ = false;

  ByteChannel file_;
  const std::unique_ptr<ByteChannel> backing_;
  const std::unique_ptr<ByteChannel> external_data_;
  InFlight in_flight_;
  PendingFrees pending_;
  MetadataExtents extents_;
  CorruptBit corrupt_bit_;
  Corruption corruption_;
  FirstWrites first_writes_;
  InflatedCopies inflated_;
  TableCache l2_tables_;
  TableCache refblocks_;
  L1Table l1_;
  Allocator allocator_;
  DataClusters data_clusters_;
  const DataTransfer transfer_;
  FlushRounds rounds_;
  ClusterMap map_;
  KeptDiscards kept_discards_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_IMAGE_H_

// DataTransfer: guest data between memory and where they lie: as they are, or
// encrypted on the way.
//
// Compressed clusters do not come through here: they are not encrypted.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_CLUSTER_DATA_TRANSFER_H_
#define SPINDLE_FORMATS_CLUSTER_DATA_TRANSFER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/cluster/address.h"
#include "formats/crypto/encrypted_transfer.h"

namespace spindle {

// What counts a sector, whose initialisation vector depends on its number.
enum class SectorNumbering {
  kGuest,  // where the guest has it
  kHost,   // where it lies in the file
};

class DataTransfer {
 public:
  // What is given must outlive it.  `encrypted`: null where nothing is.
  explicit DataTransfer(ByteChannel* channel)
      : DataTransfer(channel, nullptr, SectorNumbering::kGuest) {}
  DataTransfer(ByteChannel* channel, const crypto::EncryptedTransfer* encrypted,
               SectorNumbering numbering)
      : channel_(*channel), encrypted_(encrypted), numbering_(numbering) {}

  // What was never written reads as noise then, not as zeroes, wherever the
  // tables call it data.
  bool is_encrypted() const { return encrypted_ != nullptr; }

  // `guest`: where the guest has what lies at `host`.
  // REQUIRES: both are multiples of 512 if the image is encrypted.  An end
  // within a sector: as EncryptedTransfer.
  absl::Status read(Purpose purpose, const IoVector& qiov, GuestOffset guest,
                    HostOffset host) const {
    if (encrypted_ == nullptr) return channel_.read(purpose, qiov, host.bytes);
    return encrypted_->read(&channel_, purpose, qiov, place(guest, host));
  }
  absl::Status write(Purpose purpose, const IoVector& qiov, GuestOffset guest,
                     HostOffset host) const {
    if (encrypted_ == nullptr) return channel_.write(purpose, qiov, host.bytes);
    return encrypted_->write(&channel_, purpose, qiov, place(guest, host));
  }
  // As BlockDriver::try_read and try_write.  Encrypting is work for the pool.
  uint64_t try_read(Purpose purpose, const IoVector& qiov, GuestOffset guest,
                    HostOffset host) const {
    if (encrypted_ == nullptr)
      return channel_.try_read(purpose, qiov, host.bytes);
    return encrypted_->try_read(&channel_, purpose, qiov, place(guest, host));
  }
  uint64_t try_write(Purpose purpose, const IoVector& qiov,
                     HostOffset host) const {
    return encrypted_ == nullptr ? channel_.try_write(purpose, qiov, host.bytes)
                                 : 0;
  }

 private:
  crypto::EncryptedTransfer::Place place(GuestOffset guest,
                                         HostOffset host) const {
    const uint64_t counted =
        numbering_ == SectorNumbering::kGuest ? guest.bytes : host.bytes;
    return {host.bytes, counted / kSectorSizeBytes};
  }

  ByteChannel& channel_;
  const crypto::EncryptedTransfer* const encrypted_;
  const SectorNumbering numbering_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_DATA_TRANSFER_H_

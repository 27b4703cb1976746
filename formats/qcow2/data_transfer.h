// DataTransfer: guest data between memory and where they lie: as they are, or
// encrypted on the way.
//
// Compressed clusters do not come through here.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_DATA_TRANSFER_H_
#define SPINDLE_FORMATS_QCOW2_DATA_TRANSFER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/io_vector.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/encryption.h"

namespace spindle::qcow2 {

class DataTransfer {
 public:
  // Both must outlive it; `encryption` is null where there is none.
  DataTransfer(ByteChannel* channel, const Encryption* encryption)
      : channel_(*channel), encryption_(encryption) {}

  // What was never written reads as noise then, not as zeroes, wherever the
  // tables call it data.
  bool is_encrypted() const { return encryption_ != nullptr; }

  // `guest`: where the guest has what lies at `host`.
  // REQUIRES: both are multiples of 512 if the image is encrypted.  An end
  // within a sector: as EncryptedTransfer.
  absl::Status read(Purpose purpose, const IoVector& qiov, GuestOffset guest,
                    HostOffset host) const {
    if (encryption_ == nullptr) return channel_.read(purpose, qiov, host.bytes);
    return encryption_->transfer().read(&channel_, purpose, qiov,
                                        encryption_->place(guest, host));
  }
  absl::Status write(Purpose purpose, const IoVector& qiov, GuestOffset guest,
                     HostOffset host) const {
    if (encryption_ == nullptr)
      return channel_.write(purpose, qiov, host.bytes);
    return encryption_->transfer().write(&channel_, purpose, qiov,
                                         encryption_->place(guest, host));
  }
  // As BlockDriver::try_read and try_write.  Encrypting is work for the pool.
  uint64_t try_read(Purpose purpose, const IoVector& qiov, GuestOffset guest,
                    HostOffset host) const {
    if (encryption_ == nullptr)
      return channel_.try_read(purpose, qiov, host.bytes);
    return encryption_->transfer().try_read(&channel_, purpose, qiov,
                                            encryption_->place(guest, host));
  }
  uint64_t try_write(Purpose purpose, const IoVector& qiov,
                     HostOffset host) const {
    return encryption_ == nullptr
               ? channel_.try_write(purpose, qiov, host.bytes)
               : 0;
  }

 private:
  ByteChannel& channel_;
  const Encryption* const encryption_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_DATA_TRANSFER_H_

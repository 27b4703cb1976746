// EncryptedTransfer: moves sectors between memory, where they are plain, and a
// file that holds them encrypted.
//
// Reads go into the caller's memory and are decrypted there; writes are
// encrypted into buffers of the transfer's own, so the caller's memory never
// changes.  Both go piece by piece: a piece is in the processor's cache for
// both halves of its way.
//
// Half of one sector and half of another would decrypt to neither: reads and
// writes of the same sectors, which the page cache lets meet, exclude each
// other.
//
// Thread safety: any thread may call any method at any time.  While it waits
// for the file, a call holds its byte range there, and no lock.
#ifndef SPINDLE_FORMATS_CRYPTO_ENCRYPTED_TRANSFER_H_
#define SPINDLE_FORMATS_CRYPTO_ENCRYPTED_TRANSFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "engine/access.h"
#include "engine/aligned_buffer.h"
#include "engine/byte_channel.h"
#include "engine/io_vector.h"
#include "engine/range_tracker.h"
#include "formats/crypto/sector_cipher.h"

namespace spindle::crypto {

// One per file.
class EncryptedTransfer {
 public:
  // Where a run of sectors lies in its file, and the number of the first, which
  // its initialisation vector depends on.
  struct Place {
    uint64_t offset_bytes = 0;
    uint64_t first_sector = 0;
  };

  // `memory_alignment_bytes`: what the files want of the memory that is written
  // from.
  EncryptedTransfer(std::unique_ptr<SectorCipher> cipher,
                    size_t memory_alignment_bytes);

  const SectorCipher& cipher() const { return *cipher_; }

  // Where `qiov` ends within a sector, the rest of that sector is read as well,
  // and written as zeroes: a disk may end there.
  absl::Status read(ByteChannel* file, Purpose purpose, const IoVector& qiov,
                    Place place) const;
  absl::Status write(ByteChannel* file, Purpose purpose, const IoVector& qiov,
                     Place place) const;
  // As BlockDriver::try_read.  Short requests only: decrypting is work for the
  // pool.
  uint64_t try_read(ByteChannel* file, Purpose purpose, const IoVector& qiov,
                    Place place) const;

 private:
  absl::Status read_sectors(ByteChannel* file, Purpose purpose,
                            const IoVector& qiov, Place place) const;

  const std::unique_ptr<SectorCipher> cipher_;
  mutable AlignedBufferPool buffers_;
  // Of the file: shared while it is read, exclusive while it is written.
  mutable RangeTracker ranges_;
};

}  // namespace spindle::crypto

#endif  // SPINDLE_FORMATS_CRYPTO_ENCRYPTED_TRANSFER_H_

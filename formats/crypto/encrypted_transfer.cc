#include "formats/crypto/encrypted_transfer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "engine/checked_math.h"
#include "engine/sector.h"

namespace spindle::crypto {
namespace {

// What is read and decrypted, or encrypted and written, in one go.
constexpr size_t kPieceBytes = size_t{256} << 10;
constexpr size_t kPiecesKept = 16;
constexpr size_t kBufferAlignmentBytes = 4096;
constexpr uint64_t kMaxTryBytes = uint64_t{16} << 10;

using Place = EncryptedTransfer::Place;

// `bytes`: a multiple of 512.
Place behind(Place place, uint64_t bytes) {
  return {place.offset_bytes + bytes,
          place.first_sector + bytes / kSectorSizeBytes};
}

}  // namespace

EncryptedTransfer::EncryptedTransfer(std::unique_ptr<SectorCipher> cipher,
                                     size_t memory_alignment_bytes)
    : cipher_(std::move(cipher)),
      buffers_(std::max(kBufferAlignmentBytes, memory_alignment_bytes),
               kPiecesKept, kPieceBytes) {}

absl::Status EncryptedTransfer::read(ByteChannel* file, Purpose purpose,
                                     const IoVector& qiov, Place place) const {
  const uint64_t whole = align_down(qiov.length_bytes(), kSectorSizeBytes);
  if (whole == qiov.length_bytes())
    return read_sectors(file, purpose, qiov, place);
  absl::Status status =
      read_sectors(file, purpose, qiov.slice(0, whole), place);
  if (!status.ok()) return status;
  std::array<uint8_t, kSectorSizeBytes> last;
  status = read_sectors(file, purpose, IoVector(last.data(), last.size()),
                        behind(place, whole));
  if (status.ok())
    qiov.copy_from(whole, last.data(), qiov.length_bytes() - whole);
  return status;
}

absl::Status EncryptedTransfer::read_sectors(ByteChannel* file, Purpose purpose,
                                             const IoVector& qiov,
                                             Place place) const {
  for (uint64_t done = 0; done < qiov.length_bytes(); done += kPieceBytes) {
    const uint64_t bytes =
        std::min<uint64_t>(kPieceBytes, qiov.length_bytes() - done);
    const IoVector piece = qiov.slice(done, bytes);
    const Place at = behind(place, done);
    absl::Status status;
    {
      const RangeTracker::Hold hold(&ranges_, {at.offset_bytes, bytes},
                                    RangeTracker::Mode::kShared);
      status = file->read(purpose, piece, at.offset_bytes);
    }
    if (status.ok()) status = cipher_->decrypt(piece, at.first_sector);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status EncryptedTransfer::write(ByteChannel* file, Purpose purpose,
                                      const IoVector& qiov, Place place) const {
  const uint64_t length = qiov.length_bytes();
  const uint64_t whole = align_down(length, kSectorSizeBytes);
  std::array<uint8_t, kSectorSizeBytes> last;
  IoVector sectors = qiov;
  if (whole != length) {
    qiov.copy_to(whole, last.data(), length - whole);
    std::fill(last.begin() + (length - whole), last.end(), uint8_t{0});
    sectors = qiov.slice(0, whole);
    sectors.append(IoVector(last.data(), last.size()));
  }
  if (sectors.empty()) return absl::OkStatus();
  const AlignedBufferPool::Lease buffer = buffers_.take(kPieceBytes);
  for (uint64_t done = 0; done < sectors.length_bytes(); done += kPieceBytes) {
    const uint64_t bytes =
        std::min<uint64_t>(kPieceBytes, sectors.length_bytes() - done);
    const Place at = behind(place, done);
    absl::Status status = cipher_->encrypt(sectors.slice(done, bytes),
                                           at.first_sector, buffer.data());
    if (!status.ok()) return status;
    const RangeTracker::Hold hold(&ranges_, {at.offset_bytes, bytes},
                                  RangeTracker::Mode::kExclusive);
    status = file->write(purpose, buffer.data(), bytes, at.offset_bytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

uint64_t EncryptedTransfer::try_read(ByteChannel* file, Purpose purpose,
                                     const IoVector& qiov, Place place) const {
  if (qiov.length_bytes() > kMaxTryBytes ||
      !is_aligned(qiov.length_bytes(), kSectorSizeBytes)) {
    return 0;
  }
  uint64_t bytes = 0;
  {
    const RangeTracker::Hold hold(
        &ranges_, {place.offset_bytes, qiov.length_bytes()},
        RangeTracker::Mode::kShared, RangeTracker::kTry);
    if (!hold.held()) return 0;
    bytes = align_down(file->try_read(purpose, qiov, place.offset_bytes),
                       kSectorSizeBytes);
  }
  if (bytes == 0) return 0;
  const absl::Status status =
      cipher_->decrypt(qiov.slice(0, bytes), place.first_sector);
  // read() finds the error again.
  return status.ok() ? bytes : 0;
}

}  // namespace spindle::crypto

// Volume: an open LUKS volume without its data: header, key, key slots.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_FORMATS_LUKS_VOLUME_H_
#define SPINDLE_FORMATS_LUKS_VOLUME_H_

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "engine/amend.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "engine/sector.h"
#include "formats/crypto/sector_cipher.h"
#include "formats/luks/header.h"
#include "formats/luks/key_slots.h"

namespace spindle::luks {

class Volume {
 public:
  // The header is in the part `area` of `file`.  Writes nothing.
  // `secrets`, for amend(), may be null.
  // Errors: those of read_header() and unlock().
  static absl::StatusOr<std::unique_ptr<Volume>> open(
      std::shared_ptr<BlockDriver> file, ByteRange area,
      absl::Span<const uint8_t> passphrase,
      std::shared_ptr<const SecretStore> secrets);

  Header header() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t payload_bytes() const { return payload_bytes_; }
  absl::StatusOr<std::unique_ptr<crypto::SectorCipher>> make_cipher() const;

  // Somebody else may have changed the slots.
  // Errors: those of read_header(); kFailedPrecondition if the volume has
  // another key now.
  absl::Status reread() ABSL_LOCKS_EXCLUDED(mutex_);

  // Changes key slots; see plan_change().  Deriving keys takes seconds: then
  // comes `around`, once, which calls what it is given to write the change.
  // Errors: also kFailedPrecondition while another change is under way.
  using Write = absl::FunctionRef<absl::Status()>;
  absl::Status amend(const AmendOptions& options,
                     absl::FunctionRef<absl::Status(Write)> around)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  Volume(std::shared_ptr<BlockDriver> file, ByteRange area,
         std::shared_ptr<const SecretStore> secrets);

  absl::Status start_change(Header* header) ABSL_LOCKS_EXCLUDED(mutex_);
  void end_change(const Header& header) ABSL_LOCKS_EXCLUDED(mutex_);
  HeaderArea area() { return {&channel_, area_.offset}; }

  ByteChannel channel_;
  const ByteRange area_;
  const std::shared_ptr<const SecretStore> secrets_;
  SecretBytes key_;             // set once, by open()
  uint64_t payload_bytes_ = 0;  // the same

  // A leaf: nothing is acquired, and no I/O done, while it is held.
  mutable absl::Mutex mutex_;
  Header header_ ABSL_GUARDED_BY(mutex_);
  bool is_changing_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_VOLUME_H_

#include "engine/write_padding.h"

#include <initializer_list>

namespace spindle {
namespace {

// Announces those of `purposes` for which the write has something to read.
class Announcer {
 public:
  Announcer(const UnalignedWrite& write, AccessObserver* observer)
      : write_(write),
        observer_(write.unit_bytes > kSectorSizeBytes ? observer : nullptr) {}

  absl::Status announce(std::initializer_list<Purpose> purposes) const {
    if (observer_ == nullptr) return absl::OkStatus();
    for (const Purpose purpose : purposes) {
      const bool is_head = purpose == Purpose::kPwritevRmwHead ||
                           purpose == Purpose::kPwritevRmwAfterHead;
      if ((is_head ? write_.head_bytes() : write_.tail_bytes()) == 0) continue;
      const uint64_t unit = is_head ? write_.first_unit() : write_.last_unit();
      absl::Status status = observer_->before_access(
          {purpose, AccessKind::kRead, {unit, write_.unit_bytes}});
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  const UnalignedWrite& write_;
  AccessObserver* const observer_;
};

}  // namespace

absl::Status read_padding(
    const UnalignedWrite& write, AccessObserver* observer, uint8_t* head,
    uint8_t* tail,
    absl::FunctionRef<absl::Status(uint64_t offset, uint8_t* to)> read) {
  const Announcer announcer(write, observer);
  const bool reads_head = write.head_bytes() > 0 ||
                          (write.has_one_unit() && write.tail_bytes() > 0);
  const bool reads_tail = write.tail_bytes() > 0 && !write.has_one_unit();
  absl::Status status;
  if (write.has_one_unit()) {
    status = announcer.announce(
        {Purpose::kPwritevRmwHead, Purpose::kPwritevRmwTail});
    if (status.ok() && reads_head) status = read(write.first_unit(), head);
    return status.ok() ? announcer.announce({Purpose::kPwritevRmwAfterHead,
                                             Purpose::kPwritevRmwAfterTail})
                       : status;
  }
  if (reads_head) {
    status = announcer.announce({Purpose::kPwritevRmwHead});
    if (status.ok()) status = read(write.first_unit(), head);
    if (status.ok())
      status = announcer.announce({Purpose::kPwritevRmwAfterHead});
  }
  if (status.ok() && reads_tail) {
    status = announcer.announce({Purpose::kPwritevRmwTail});
    if (status.ok()) status = read(write.last_unit(), tail);
    if (status.ok())
      status = announcer.announce({Purpose::kPwritevRmwAfterTail});
  }
  return status;
}

}  // namespace spindle

#include "formats/qcow2/header_switch.h"

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/sector.h"

namespace spindle::qcow2 {
namespace {

absl::Status write_fields(ByteChannel* file, uint64_t offset,
                          const std::vector<uint8_t>& bytes) {
  absl::Status status =
      file->write(Purpose::kHeaderUpdate, bytes.data(), bytes.size(), offset);
  return status.ok() ? file->flush() : status;
}

}  // namespace

absl::Status switch_header_fields(ByteChannel* file, Corruption* corruption,
                                  const HeaderFields& fields) {
  ABSL_ASSERT(fields.before.size() == fields.after.size());
  ABSL_ASSERT(fields.offset + fields.after.size() <= kSectorSizeBytes);
  absl::Status status = write_fields(file, fields.offset, fields.after);
  if (status.ok() || write_fields(file, fields.offset, fields.before).ok())
    return status;
  corruption
      ->report(absl::StrCat("the header could not be written while ",
                            fields.what, ": ", status.message()))
      .IgnoreError();
  return status;
}

}  // namespace spindle::qcow2

// Switching the image to another structure: one write of a few header fields.
//
// DESIGN.md, "qcow2: rules that may not be broken", 2: the new structure and
// its refcounts are durable before, the old one is freed after.
//
// Thread safety: one switch at a time.
#ifndef SPINDLE_FORMATS_QCOW2_HEADER_SWITCH_H_
#define SPINDLE_FORMATS_QCOW2_HEADER_SWITCH_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/byte_channel.h"
#include "formats/cluster/corruption.h"

namespace spindle::qcow2 {

struct HeaderFields {
  // Where the fields stand: adjacent, within the header's first sector.
  uint64_t offset = 0;
  std::vector<uint8_t> before;
  std::vector<uint8_t> after;
  // What was going on, for a message: "the snapshot table was replaced".
  absl::string_view what;
};

// Writes `after`, durably.  After an error the disk has `before` again; if that
// cannot be had either, nobody knows which, and the image is marked corrupt.
absl::Status switch_header_fields(ByteChannel* file, Corruption* corruption,
                                  const HeaderFields& fields);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_HEADER_SWITCH_H_

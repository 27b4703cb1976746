// The header in its file: read, and replaced whole.
//
// Whoever changes a few fields within the first sector writes those; replacing
// is for changes that move the extensions or the backing file's name as well.
//
// Thread safety: functions; nothing else may write the header meanwhile.
#ifndef SPINDLE_FORMATS_QCOW2_HEADER_FILE_H_
#define SPINDLE_FORMATS_QCOW2_HEADER_FILE_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "formats/cluster/corruption.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

// Errors: those of parse_header(), of find_bitmap_directory() and of the file.
absl::StatusOr<Header> read_header(ByteChannel* file,
                                   TableChecks checks = TableChecks::kAll);

// Puts the extensions into the order in which QEMU writes them, and the feature
// name table where its version and the room ask for one.
void order_extensions(Header* header);

// Makes `next` the image's header, and durable.  After a power cut in between
// the image has its old header, or one that says what `next` says.  It is
// switched by one write within the first sector; what does not fit there is
// written before, where nothing reads it.  (Where both headers reach beyond the
// first sector, one without the feature names stands there for a moment.)
// Errors: kResourceExhausted if `next` does not fit into the first cluster, and
// nothing has changed then; those of the file.
absl::Status switch_header(ByteChannel* file, const Header& next);

// The same for an open image that has the header `old`: after an error it has
// that one still, or is marked corrupt.
absl::Status replace_header(ByteChannel* file, Corruption* corruption,
                            const Header& old, const Header& next);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_HEADER_FILE_H_

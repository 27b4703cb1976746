// BitmapsExtension: changes what the header says of the bitmap directory, so
// that after a power cut at any moment the header names the old directory, the
// new one, or none (autoclear bit 0 is clear: the bitmaps do not count).
//
// qcow2 specification, "Header extensions" and "Bitmaps extension".  An
// extension that is there already is changed by one write where it lies within
// one sector.  Else autoclear bit 0 is cleared, durable; the extensions are
// changed, durable; the bit is set, durable.  Where the backing file's name is
// in the way of a new extension, a copy of it further behind takes its place
// first, by one write within the header's first sector.
//
// Thread safety: one thread, while nobody else writes the header.
#ifndef SPINDLE_FORMATS_QCOW2_BITMAPS_EXTENSION_H_
#define SPINDLE_FORMATS_QCOW2_BITMAPS_EXTENSION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/byte_channel.h"
#include "formats/qcow2/bitmap_directory.h"

namespace spindle::qcow2 {

class BitmapsExtension {
 public:
  // `file` must outlive this.
  BitmapsExtension(ByteChannel* file, uint64_t cluster_bytes)
      : file_(*file), cluster_bytes_(cluster_bytes) {}

  enum class State {
    kOld,      // nothing changed
    kNew,      // as wished, durable
    kUnknown,  // the header may name the old directory, the new one, or none
  };
  // Makes the header name `directory`, which is durable with its refcounts;
  // count 0: none.  An error comes with kOld or kUnknown.
  // Errors: kResourceExhausted if the header has no room, those of the file.
  absl::Status change(const BitmapDirectory& directory, State* state);

  // OK if the header has an extension, or room for one.
  absl::Status check_room();

 private:
  // Where things stand in the first cluster.
  struct Layout {
    uint64_t autoclear_features = 0;
    uint64_t extension = 0;  // its type; 0: there is none
    uint64_t extension_end = 0;
    uint64_t end_marker = 0;
    uint64_t name = 0;  // the backing file's; 0: none
    uint64_t name_bytes = 0;
  };
  using Bytes = std::vector<uint8_t>;

  absl::StatusOr<Bytes> read_header();
  absl::StatusOr<Layout> find_layout(const Bytes& header) const;
  // Where the name goes if there is an extension more; an error if there is no
  // room.
  absl::StatusOr<uint64_t> new_name_place(const Layout& layout) const;

  absl::Status write(uint64_t offset, absl::Span<const uint8_t> bytes);
  absl::Status write_durably(uint64_t offset, absl::Span<const uint8_t> bytes);
  absl::Status write_autoclear(uint64_t features);

  absl::Status replace(const Layout& layout, const std::string& data);
  absl::Status move_name(const Bytes& header, const Layout& layout);
  absl::Status insert(const Layout& layout, const std::string& data);
  absl::Status remove(const Layout& layout);
  absl::Status change_slowly(const Bytes& header, const Layout& layout,
                             const BitmapDirectory& directory);
  absl::Status restore(const Bytes& header, const Layout& layout);

  ByteChannel& file_;
  const uint64_t cluster_bytes_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_BITMAPS_EXTENSION_H_

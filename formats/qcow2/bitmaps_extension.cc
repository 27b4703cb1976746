#include "formats/qcow2/bitmaps_extension.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

// With its type and length.
constexpr uint64_t kWholeExtensionBytes =
    kExtensionHeaderBytes + kBitmapsExtensionBytes;

absl::Span<const uint8_t> as_bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::array<uint8_t, 8> big64(uint64_t value) {
  std::array<uint8_t, 8> bytes{};
  store_big64(bytes.data(), value);
  return bytes;
}

bool in_one_sector(uint64_t offset, uint64_t length) {
  return offset / kSectorSizeBytes == (offset + length - 1) / kSectorSizeBytes;
}

}  // namespace

// ---- What is there ----------------------------------------------------------

absl::StatusOr<BitmapsExtension::Bytes> BitmapsExtension::read_header() {
  // What the file does not have reads as zeroes.
  Bytes header(cluster_bytes_);
  absl::Status status =
      file_.read(Purpose::kHeaderLoad, header.data(), header.size(), 0);
  if (!status.ok()) return status;
  return header;
}

absl::StatusOr<BitmapsExtension::Layout> BitmapsExtension::find_layout(
    const Bytes& header) const {
  const absl::StatusOr<Header> parsed =
      parse_header(header, std::max(file_.length_bytes(), cluster_bytes_));
  if (!parsed.ok()) return parsed.status();
  if (parsed->version < kVersion3) {
    return absl::FailedPreconditionError(
        "Cannot store dirty bitmaps in qcow2 v2 files");
  }
  Layout layout;
  layout.autoclear_features = parsed->autoclear_features;
  layout.name = parsed->backing_file_offset;
  layout.name_bytes = parsed->backing_file_size;
  const uint64_t limit = layout.name != 0 ? layout.name : cluster_bytes_;
  uint64_t at = parsed->header_length;
  if (limit < at) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the backing file's name is at offset ", layout.name,
        ", within the header's ", at, " bytes: no extension can be added"));
  }
  // As the parser saw them: no extension ends beyond the limit.
  while (limit - at >= kExtensionHeaderBytes) {
    const uint32_t type = load_big32(&header[at]);
    const uint64_t length = load_big32(&header[at + 4]);
    if (type == kExtensionEnd) break;
    const uint64_t end =
        at + kExtensionHeaderBytes + align_up(length, kExtensionAlignment);
    if (type == kExtensionBitmaps && layout.extension == 0) {
      layout.extension = at;
      layout.extension_end = end;
    }
    at = std::min(end, limit);
  }
  layout.end_marker = at;
  return layout;
}

absl::StatusOr<uint64_t> BitmapsExtension::new_name_place(
    const Layout& layout) const {
  // Only with a header whose length is odd.
  if (!in_one_sector(layout.end_marker, kExtensionHeaderBytes)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the header's extensions end at ", layout.end_marker,
        ": no other can be added by a write that a power cut leaves whole"));
  }
  const uint64_t needed =
      layout.end_marker + kWholeExtensionBytes + kExtensionHeaderBytes;
  uint64_t end = needed;
  uint64_t place = layout.name;
  if (layout.name != 0 && layout.name < needed) {
    // Apart from the old one, which is there until the new one counts.
    place = std::max(
        needed, align_up(layout.name + layout.name_bytes, kExtensionAlignment));
    end = place + layout.name_bytes;
  }
  if (end <= cluster_bytes_) return place;
  return absl::ResourceExhaustedError(
      absl::StrCat("the header has no room for the bitmaps extension: it would "
                   "end at ",
                   end, ", and the first cluster has ", cluster_bytes_));
}

absl::Status BitmapsExtension::check_room() {
  const absl::StatusOr<Bytes> header = read_header();
  if (!header.ok()) return header.status();
  const absl::StatusOr<Layout> layout = find_layout(*header);
  if (!layout.ok() || layout->extension != 0) return layout.status();
  return new_name_place(*layout).status();
}

// ---- Steps ------------------------------------------------------------------

absl::Status BitmapsExtension::write(uint64_t offset,
                                     absl::Span<const uint8_t> bytes) {
  return file_.write(Purpose::kHeaderUpdate, const_cast<uint8_t*>(bytes.data()),
                     bytes.size(), offset);
}

absl::Status BitmapsExtension::write_durably(uint64_t offset,
                                             absl::Span<const uint8_t> bytes) {
  absl::Status status = write(offset, bytes);
  return status.ok() ? file_.flush() : status;
}

absl::Status BitmapsExtension::write_autoclear(uint64_t features) {
  return write_durably(kAutoclearFeaturesOffset, big64(features));
}

absl::Status BitmapsExtension::replace(const Layout& layout,
                                       const std::string& data) {
  return write_durably(layout.extension + kExtensionHeaderBytes,
                       as_bytes(data));
}

absl::Status BitmapsExtension::move_name(const Bytes& header,
                                         const Layout& layout) {
  const absl::StatusOr<uint64_t> place = new_name_place(layout);
  if (!place.ok()) return place.status();
  if (*place == layout.name) return absl::OkStatus();
  absl::Status status =
      write_durably(*place, {header.data() + layout.name, layout.name_bytes});
  if (!status.ok()) return status;
  return write_durably(kBackingFileOffsetOffset, big64(*place));
}

absl::Status BitmapsExtension::insert(const Layout& layout,
                                      const std::string& data) {
  // Behind the end marker first, which nobody reads.
  std::string tail = data;
  tail.append(kExtensionHeaderBytes, '\0');
  absl::Status status =
      write_durably(layout.end_marker + kExtensionHeaderBytes, as_bytes(tail));
  if (!status.ok()) return status;
  // Eight bytes within one sector.
  std::array<uint8_t, kExtensionHeaderBytes> head{};
  store_big32(head.data(), kExtensionBitmaps);
  store_big32(&head[4], kBitmapsExtensionBytes);
  return write_durably(layout.end_marker, head);
}

absl::Status BitmapsExtension::remove(const Layout& layout) {
  // Among others it stays: without the autoclear bit it means nothing, and they
  // cannot all be moved by one write.  Nor can one that begins in two sectors
  // be taken away.
  if (layout.extension_end != layout.end_marker ||
      !in_one_sector(layout.extension, kExtensionHeaderBytes)) {
    return absl::OkStatus();
  }
  absl::Status status = write_durably(layout.extension, big64(0));
  if (!status.ok()) return status;
  return write(
      layout.extension + kExtensionHeaderBytes,
      Bytes(layout.extension_end - layout.extension - kExtensionHeaderBytes));
}

// ---- The change -------------------------------------------------------------

absl::Status BitmapsExtension::change_slowly(const Bytes& header,
                                             const Layout& layout,
                                             const BitmapDirectory& directory) {
  const uint64_t others = layout.autoclear_features & ~kAutoclearBitmaps;
  absl::Status status;
  if (layout.autoclear_features != others) status = write_autoclear(others);
  if (!status.ok()) return status;
  if (directory.count == 0)
    return layout.extension == 0 ? status : remove(layout);
  const std::string data = serialize_bitmaps_extension(directory);
  if (layout.extension_end - layout.extension == kWholeExtensionBytes) {
    status = replace(layout, data);
  } else if (layout.extension != 0) {
    status =
        absl::DataLossError("qcow2: the bitmaps extension has a wrong length");
  } else {
    status = move_name(header, layout);
    if (status.ok()) status = insert(layout, data);
  }
  return status.ok() ? write_autoclear(others | kAutoclearBitmaps) : status;
}

// Everything as it was, in an order in which nothing wrong is ever named.
absl::Status BitmapsExtension::restore(const Bytes& header,
                                       const Layout& layout) {
  absl::Status status =
      write_autoclear(layout.autoclear_features & ~kAutoclearBitmaps);
  if (status.ok() && layout.extension == 0) {
    status = write_durably(layout.end_marker, big64(0));
  } else if (status.ok()) {
    const uint64_t length =
        std::min(layout.extension_end, cluster_bytes_) - layout.extension;
    const uint64_t head = std::min<uint64_t>(length, kExtensionHeaderBytes);
    status = write_durably(
        layout.extension + head,
        absl::MakeSpan(header).subspan(layout.extension + head, length - head));
    if (status.ok()) {
      status = write_durably(layout.extension, absl::MakeSpan(header).subspan(
                                                   layout.extension, head));
    }
  }
  if (!status.ok() || (layout.autoclear_features & kAutoclearBitmaps) == 0)
    return status;
  return write_autoclear(layout.autoclear_features);
}

absl::Status BitmapsExtension::change(const BitmapDirectory& directory,
                                      State* state) {
  *state = State::kOld;
  const absl::StatusOr<Bytes> header = read_header();
  if (!header.ok()) return header.status();
  const absl::StatusOr<Layout> layout = find_layout(*header);
  if (!layout.ok()) return layout.status();
  if (directory.count != 0 && layout->extension == 0) {
    absl::Status room = new_name_place(*layout).status();
    if (!room.ok()) return room;
  }
  const bool quick =
      directory.count != 0 && layout->extension != 0 &&
      (layout->autoclear_features & kAutoclearBitmaps) != 0 &&
      layout->extension_end - layout->extension == kWholeExtensionBytes &&
      in_one_sector(layout->extension + kExtensionHeaderBytes,
                    kBitmapsExtensionBytes);
  absl::Status status =
      quick ? replace(*layout, serialize_bitmaps_extension(directory))
            : change_slowly(*header, *layout, directory);
  if (status.ok()) {
    *state = State::kNew;
  } else if (!restore(*header, *layout).ok()) {
    *state = State::kUnknown;
  }
  return status;
}

}  // namespace spindle::qcow2

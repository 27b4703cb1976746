#include "tools/image_report.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "engine/access.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/image_name.h"
#include "engine/image_opener.h"
#include "engine/qemu_order.h"
#include "engine/sector.h"
#include "formats/crypto/algorithms.h"
#include "formats/luks/header.h"
#include "formats/luks/key_slots.h"
#include "formats/qcow/header.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/snapshot_table.h"
#include "tools/cli_text.h"
#include "tools/snapshot_text.h"

namespace spindle {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kProbeBytes = uint64_t{64} << 10;

absl::StatusOr<std::vector<uint8_t>> read_head(BlockDriver& storage,
                                               ByteChannel* channel,
                                               uint64_t at_most) {
  std::vector<uint8_t> head(std::min(storage.length_bytes(), at_most));
  absl::Status status =
      channel->read(Purpose::kHeaderLoad, head.data(), head.size(), 0);
  if (!status.ok()) return status;
  return head;
}

Json describe_bitmaps(const std::vector<qcow2::BitmapEntry>& bitmaps) {
  Json list = Json::array();
  for (const qcow2::BitmapEntry& bitmap : bitmaps) {
    Json one;
    one["flags"] = Json::array();
    if (bitmap.in_use()) one["flags"].push_back("in-use");
    if ((bitmap.flags & qcow2::kBitmapAuto) != 0)
      one["flags"].push_back("auto");
    one["name"] = bitmap.name;
    one["granularity"] = bitmap.granularity_bytes();
    list.push_back(std::move(one));
  }
  return list;
}

// The part that is specific to LUKS, by QEMU's names; `format` is what it is
// within another format, or empty.
Json describe_luks(const luks::Header& header, const std::string& format) {
  Json data;
  data["ivgen-alg"] =
      std::string(crypto::iv_generator_name(header.spec.iv_generator));
  data["hash-alg"] = std::string(crypto::hash_name(header.hash));
  data["cipher-alg"] = crypto::cipher_name(header.spec.cipher);
  data["uuid"] = header.uuid;
  if (header.spec.iv_generator == crypto::IvGenerator::kEssiv) {
    data["ivgen-hash-alg"] =
        std::string(crypto::hash_name(header.spec.iv_hash));
  }
  if (!format.empty()) data["format"] = format;
  data["cipher-mode"] = std::string(crypto::mode_name(header.spec.mode));
  data["slots"] = Json::array();
  for (const luks::KeySlot& slot : header.slots) {
    Json one;
    one["active"] = slot.active;
    if (slot.active) one["iters"] = slot.iterations;
    one["key-offset"] = uint64_t{slot.material_sector} * kSectorSizeBytes;
    if (slot.active) one["stripes"] = luks::kStripes;
    data["slots"].push_back(std::move(one));
  }
  data["payload-offset"] = uint64_t{header.payload_sector} * kSectorSizeBytes;
  data["master-key-iters"] = header.key_iterations;
  return data;
}

// How a qcow2 is encrypted; null if it is not.
absl::StatusOr<Json> describe_encryption(ByteChannel* channel,
                                         const qcow2::Header& header) {
  const absl::StatusOr<std::optional<ByteRange>> area =
      qcow2::find_luks_header(header);
  if (!area.ok()) return area.status();
  const std::string format(qcow2::encryption_name(header));
  if (format.empty()) return Json();
  if (!area->has_value()) return Json{{"format", format}};
  const absl::StatusOr<luks::Header> luks =
      luks::read_header({channel, (*area)->offset}, (*area)->length);
  if (!luks.ok()) return luks.status();
  return describe_luks(*luks, format);
}

// The part that is specific to qcow2, by QEMU's names.
Json describe_qcow2(const qcow2::Header& header, const Json& encryption,
                    const std::vector<qcow2::BitmapEntry>& bitmaps) {
  const bool version3 = header.version == qcow2::kVersion3;
  Json data;
  data["compat"] = version3 ? "1.1" : "0.10";
  data["compression-type"] =
      header.compression_type == qcow2::kCompressionZstd ? "zstd" : "zlib";
  if (version3) data["lazy-refcounts"] = header.lazy_refcounts();
  if (!bitmaps.empty()) data["bitmaps"] = describe_bitmaps(bitmaps);
  data["refcount-bits"] = header.refcount_bits();
  if (!encryption.is_null()) data["encrypt"] = encryption;
  if (header.find_extension(qcow2::kExtensionDataFile) != nullptr)
    data["data-file"] = header.data_filename();
  if (header.has_data_file()) data["data-file-raw"] = header.data_file_is_raw();
  if (version3) {
    data["corrupt"] = header.is_corrupt();
    data["extended-l2"] = header.extended_l2();
  }
  return data;
}

absl::StatusOr<ImageReport> report_qcow2(BlockDriver& storage,
                                         ByteChannel* channel,
                                         ImageReport report) {
  absl::StatusOr<std::vector<uint8_t>> head =
      read_head(storage, channel, kProbeBytes);
  if (!head.ok()) return head.status();
  const absl::StatusOr<uint64_t> wanted =
      qcow2::header_read_length(*head, storage.length_bytes());
  if (!wanted.ok()) return wanted.status();
  if (*wanted > head->size()) head = read_head(storage, channel, *wanted);
  if (!head.ok()) return head.status();
  const absl::StatusOr<qcow2::Header> header = qcow2::parse_header(
      *head, storage.length_bytes(), qcow2::TableChecks::kForReading);
  if (!header.ok()) return header.status();

  // QEMU counts in sectors.
  report.virtual_size_bytes = align_down(header->size_bytes, kSectorSizeBytes);
  report.cluster_size_bytes = header->cluster_size_bytes();
  report.encrypted = header->crypt_method != qcow2::kCryptNone;
  report.needs_more =
      report.encrypted || header->has_data_file() || header->data_file_is_raw();
  report.dirty = header->is_dirty();
  report.backing_filename = header->backing_filename;
  if (!report.backing_filename.empty())
    report.backing_format = header->backing_format;
  const absl::StatusOr<qcow2::BitmapDirectory> directory =
      qcow2::find_bitmap_directory(*header);
  if (!directory.ok()) return directory.status();
  const absl::StatusOr<std::vector<qcow2::BitmapEntry>> bitmaps =
      qcow2::read_bitmap_directory(channel, *header, *directory);
  if (!bitmaps.ok()) return bitmaps.status();
  const absl::StatusOr<Json> encryption = describe_encryption(channel, *header);
  if (!encryption.ok()) return encryption.status();
  report.format_specific = describe_qcow2(*header, *encryption, *bitmaps);
  // QEMU lists none of an image with a data file.
  if (header->has_data_file()) return report;
  // Beyond the end of the file it finds zeroes, as whoever opens the image.
  qcow2::SnapshotTableReader snapshots(channel, *header);
  while (!snapshots.at_end()) {
    absl::StatusOr<qcow2::Snapshot> snapshot = snapshots.next();
    if (!snapshot.ok()) return snapshot.status();
    report.snapshots.push_back(std::move(snapshot->info));
  }
  return report;
}

absl::StatusOr<ImageReport> report_qcow(ByteChannel* channel,
                                        ImageReport report) {
  const absl::StatusOr<qcow::Header> header = qcow::read_header(channel);
  if (!header.ok()) return header.status();
  report.virtual_size_bytes = header->disk_bytes();
  report.cluster_size_bytes = header->cluster_size_bytes();
  report.encrypted = header->is_encrypted();
  report.needs_more = report.encrypted;
  report.backing_filename = header->backing_filename;
  return report;
}

// What the driver of any other format says.
absl::StatusOr<ImageReport> report_opened(
    const ImageOpener::Inspected& inspected, ImageReport report) {
  std::shared_ptr<BlockDriver> driver = inspected.file;
  if (inspected.format != nullptr) {
    absl::StatusOr<std::shared_ptr<BlockDriver>> opened =
        inspected.format->open(inspected.file, inspected.options,
                               OpenContext{});
    if (!opened.ok()) return opened.status();
    driver = *std::move(opened);
  }
  // Not closed: its file is the caller's.
  const ImageInfo info = driver->info();
  report.virtual_size_bytes =
      align_up(info.virtual_size_bytes, kSectorSizeBytes);
  report.actual_size_bytes = info.actual_size_bytes;
  report.cluster_size_bytes = info.cluster_size_bytes;
  return report;
}

absl::StatusOr<ImageReport> report_luks(const BlockDriver& storage,
                                        absl::Span<const uint8_t> head,
                                        ImageReport report) {
  const absl::StatusOr<luks::Header> header =
      luks::parse_header(head, storage.length_bytes());
  if (!header.ok()) return header.status();
  report.virtual_size_bytes =
      align_down(storage.length_bytes(), kSectorSizeBytes) -
      uint64_t{header->payload_sector} * kSectorSizeBytes;
  report.encrypted = true;
  report.format_specific = describe_luks(*header, /*format=*/"");
  return report;
}

// That the rest of the image is sound enough to be opened, as far as that needs
// neither a key nor another file.
absl::Status try_to_open(const ImageOpener::Inspected& inspected,
                         const ImageReport& report) {
  if (report.needs_more) return absl::OkStatus();
  return inspected.format
      ->open(inspected.file, inspected.options, OpenContext{})
      .status();
}

absl::StatusOr<ImageReport> report_inspected(
    const ImageOpener::Inspected& inspected) {
  BlockDriver& file = *inspected.file;
  ImageReport report;
  report.actual_size_bytes = file.info().actual_size_bytes;
  report.format = inspected.driver;
  ByteChannel channel(inspected.file);
  if (inspected.format == nullptr)
    return report_opened(inspected, std::move(report));
  if (report.format == "luks") {
    const absl::StatusOr<std::vector<uint8_t>> head =
        read_head(file, &channel, luks::kHeaderBytes);
    if (!head.ok()) return head.status();
    return report_luks(file, *head, std::move(report));
  }
  if (report.format != "qcow2" && report.format != "qcow")
    return report_opened(inspected, std::move(report));
  absl::StatusOr<ImageReport> found =
      report.format == "qcow" ? report_qcow(&channel, std::move(report))
                              : report_qcow2(file, &channel, std::move(report));
  if (!found.ok()) return found;
  const absl::Status status = try_to_open(inspected, *found);
  if (!status.ok()) return status;
  return found;
}

// Members in QEMU's order, at all depths.
Json in_qemu_order(const Json& json) {
  if (json.is_array()) {
    Json list = Json::array();
    for (const Json& item : json) list.push_back(in_qemu_order(item));
    return list;
  }
  if (!json.is_object()) return json;
  std::map<std::string, Json, QemuOrder> members;
  for (const auto& [name, value] : json.items())
    members[name] = in_qemu_order(value);
  Json object = Json::object();
  for (auto& [name, value] : members) object[name] = std::move(value);
  return object;
}

std::string print_value(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

void append_values(const Json& values, int indentation, std::string* text) {
  const std::string indent(static_cast<size_t>(indentation), ' ');
  size_t index = 0;
  for (const auto& [key, value] : values.items()) {
    const std::string name = values.is_array()
                                 ? absl::StrCat("[", index++, "]")
                                 : absl::StrReplaceAll(key, {{"-", " "}});
    if (value.is_structured()) {
      absl::StrAppend(text, indent, name, ":\n");
      append_values(value, indentation + 4, text);
    } else {
      absl::StrAppend(text, indent, name, ": ", print_value(value), "\n");
    }
  }
}

}  // namespace

absl::StatusOr<ImageReport> make_report(const ImageOpener& opener,
                                        const ImageArgument& image,
                                        bool force_share) {
  OpenOptions options;
  options.read_only = true;
  options.force_share = force_share;
  options.open_backing = false;
  const absl::StatusOr<ImageOpener::Inspected> inspected =
      image.image_opts
          ? opener.inspect_nodes(
                parse_image_opts(image.name, ShortForms::kWarnedOf), options)
          : opener.inspect(image.name, image.format, options);
  if (!inspected.ok()) return inspected.status();
  absl::StatusOr<ImageReport> report = report_inspected(*inspected);
  const absl::Status closed = inspected->file->close();
  if (!report.ok()) return report;
  if (!closed.ok()) return closed;
  report->filename =
      display_name(image, inspected->file->filename(), report->format);
  if (!report->backing_filename.empty()) {
    report->full_backing_filename =
        resolve_backing_filename(NameSyntax::kQemu, inspected->file->filename(),
                                 report->backing_filename);
  }
  return report;
}

std::string to_text(const ImageReport& report) {
  std::string text =
      absl::StrCat("image: ", report.filename, "\nfile format: ", report.format,
                   "\nvirtual size: ", human_size(report.virtual_size_bytes),
                   " (", report.virtual_size_bytes, " bytes)\ndisk size: ",
                   report.actual_size_bytes.has_value()
                       ? human_size(*report.actual_size_bytes)
                       : "unavailable",
                   "\n");
  if (report.encrypted) absl::StrAppend(&text, "encrypted: yes\n");
  if (report.cluster_size_bytes.has_value()) {
    absl::StrAppend(&text, "cluster_size: ", *report.cluster_size_bytes, "\n");
  }
  if (report.dirty) absl::StrAppend(&text, "cleanly shut down: no\n");
  if (!report.backing_filename.empty()) {
    absl::StrAppend(&text, "backing file: ", report.backing_filename);
    if (report.full_backing_filename != report.backing_filename) {
      absl::StrAppend(&text, " (actual path: ", report.full_backing_filename,
                      ")");
    }
    absl::StrAppend(&text, "\n");
    if (!report.backing_format.empty()) {
      absl::StrAppend(&text, "backing file format: ", report.backing_format,
                      "\n");
    }
  }
  text += snapshot_table_text(report.snapshots);
  text += format_specific_text(report);
  return text;
}

std::string format_specific_text(const ImageReport& report) {
  if (report.format_specific.is_null()) return {};
  std::string text = "Format specific information:\n";
  append_values(in_qemu_order(report.format_specific), 4, &text);
  return text;
}

Json to_json(const SnapshotInfo& snapshot) {
  constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;
  Json json = Json::object();
  if (snapshot.instruction_count.has_value())
    json["icount"] = *snapshot.instruction_count;
  json["vm-clock-nsec"] = snapshot.vm_clock_nanoseconds % kNanosecondsPerSecond;
  json["name"] = snapshot.name;
  json["date-sec"] = snapshot.date_seconds;
  json["date-nsec"] = snapshot.date_nanoseconds;
  json["vm-clock-sec"] = snapshot.vm_clock_nanoseconds / kNanosecondsPerSecond;
  json["id"] = snapshot.id;
  json["vm-state-size"] = snapshot.vm_state_bytes;
  return json;
}

Json to_json(const ImageReport& report) {
  Json json = Json::object();
  if (!report.backing_format.empty())
    json["backing-filename-format"] = report.backing_format;
  for (const SnapshotInfo& snapshot : report.snapshots)
    json["snapshots"].push_back(to_json(snapshot));
  json["virtual-size"] = report.virtual_size_bytes;
  json["filename"] = report.filename;
  if (report.cluster_size_bytes.has_value())
    json["cluster-size"] = *report.cluster_size_bytes;
  json["format"] = report.format;
  if (report.actual_size_bytes.has_value())
    json["actual-size"] = *report.actual_size_bytes;
  if (!report.format_specific.is_null()) {
    json["format-specific"]["type"] = report.format;
    json["format-specific"]["data"] = report.format_specific;
  }
  if (!report.backing_filename.empty()) {
    json["full-backing-filename"] = report.full_backing_filename;
    json["backing-filename"] = report.backing_filename;
  }
  if (report.encrypted) json["encrypted"] = true;
  json["dirty-flag"] = report.dirty;
  return json;
}

std::string print_json(const Json& json) {
  const std::string text = in_qemu_order(json).dump(
      4, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  // QEMU breaks the line in an empty list.
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (std::string& line : lines) {
    const bool more = absl::EndsWith(line, "[],");
    if (!more && !absl::EndsWith(line, "[]")) continue;
    const size_t indentation = line.find_first_not_of(' ');
    line.erase(line.rfind(']'));
    absl::StrAppend(&line, "\n", std::string(indentation, ' '), "]",
                    more ? "," : "");
  }
  return absl::StrJoin(lines, "\n");
}

}  // namespace spindle

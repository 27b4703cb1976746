#include "formats/qcow/check.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "formats/cluster/l1_table.h"
#include "formats/cluster/metadata_extents.h"
#include "formats/qcow/address.h"
#include "formats/qcow/header.h"
#include "formats/qcow/table_entry.h"
#include "formats/qcow/used_sectors.h"

namespace spindle::qcow {
namespace {

// More lines than this nobody reads.
constexpr uint64_t kMaxLines = 10'000;

class Check {
 public:
  Check(ByteChannel* file, const Header& header, UsedSectors used,
        const CheckOptions& options)
      : file_(*file),
        header_(header),
        options_(options),
        used_(std::move(used)),
        l1_(HostOffset{header.l1_table_offset}, header.l1_entry_count(), {}),
        // What ends within a cluster may be a cluster.
        file_end_(align_up(file->length_bytes(), header.cluster_size_bytes())) {
    geometry_.cluster_bits = header.cluster_bits;
    geometry_.l2_bits = header.l2_bits;
    geometry_.size_bytes = header.disk_bytes();
  }

  absl::StatusOr<CheckResult> run();

 private:
  void found(const std::string& line);
  void end_report();
  absl::Status enter_header();
  void enter_tables();
  void check_table(uint64_t l1_index);
  void check_entry(uint64_t guest, L2Entry entry);
  // Why `place` cannot hold what an entry says; empty if it can.
  std::string fault_of(L2Entry entry, ByteRange place);

  ByteChannel& file_;
  const Header& header_;
  const CheckOptions& options_;
  UsedSectors used_;
  L1Table l1_;
  const uint64_t file_end_;
  Geometry geometry_;
  MetadataExtents extents_;
  CheckResult result_;
  // L1 entries that name a table that can be looked at.
  std::vector<uint64_t> sound_;
  uint64_t lines_ = 0;
  // Where the next cluster would be if it followed the one before; 0: unknown.
  uint64_t expected_ = 0;
};

void Check::found(const std::string& line) {
  ++result_.corruptions;
  if (options_.report && ++lines_ <= kMaxLines)
    options_.report(absl::StrCat("ERROR: ", line));
}

void Check::end_report() {
  if (lines_ > kMaxLines) {
    options_.report(
        absl::StrCat(lines_ - kMaxLines, " more findings are not listed"));
  }
}

absl::Status Check::enter_header() {
  const auto enter = [&](MetadataKind kind, ByteRange range) {
    const absl::Status status = extents_.add(kind, range);
    if (!status.ok()) found(std::string(status.message()));
    result_.image_end_offset = std::max(result_.image_end_offset, range.end());
  };
  enter(MetadataKind::kHeader, {0, kHeaderBytes});
  if (!header_.backing_filename.empty()) {
    enter(MetadataKind::kHeader,
          {header_.backing_file_offset, header_.backing_file_size});
  }
  enter(MetadataKind::kL1Table,
        {header_.l1_table_offset, header_.l1_table_bytes()});
  return l1_.load(&file_);
}

// All tables before any cluster: who overlaps a table is at fault.
void Check::enter_tables() {
  for (uint64_t i = 0; i < l1_.entry_count(); ++i) {
    const uint64_t offset = l1_.l2_table(i).bytes;
    if (offset == 0) continue;
    if (offset > file_end_ || geometry_.l2_table_bytes() > file_end_ - offset) {
      found(absl::StrFormat(
          "L1 entry %d names an L2 table at offset %#x, beyond the end of the "
          "file",
          i, offset));
      continue;
    }
    const ByteRange table{offset, geometry_.l2_table_bytes()};
    const absl::Status status = extents_.add(MetadataKind::kL2Table, table);
    if (!status.ok()) {
      found(absl::StrCat("L1 entry ", i, ": ", status.message()));
      continue;
    }
    result_.image_end_offset = std::max(result_.image_end_offset, table.end());
    sound_.push_back(i);
  }
}

void Check::check_table(uint64_t l1_index) {
  std::vector<uint8_t> bytes(geometry_.l2_table_bytes());
  const absl::Status status =
      file_.read(Purpose::kL2Load, bytes.data(), bytes.size(),
                 l1_.l2_table(l1_index).bytes);
  if (!status.ok()) {
    ++result_.check_errors;
    if (options_.report) {
      options_.report(absl::StrCat("ERROR: the L2 table of L1 entry ", l1_index,
                                   " cannot be read: ", status.message()));
    }
    return;
  }
  const uint64_t first = l1_index * header_.l1_entry_coverage_bytes();
  for (uint64_t i = 0; i < geometry_.l2_entries(); ++i) {
    check_entry(first + geometry_.cluster_offset(i),
                L2Entry(load_big64(&bytes[i * kL2EntryBytes])));
  }
}

std::string Check::fault_of(L2Entry entry, ByteRange place) {
  const bool is_compressed = entry.kind() == ClusterKind::kCompressed;
  if (!is_compressed && !is_sector_aligned(place.offset))
    return "is not a multiple of the sector size";
  if (place.empty()) return "has no compressed data";
  if (place.offset > file_end_ || place.length > file_end_ - place.offset)
    return "lies beyond the end of the file";
  if (const auto metadata = extents_.find_overlap(place))
    return absl::StrCat("overlaps the image's ", metadata_kind_name(*metadata));
  if (!used_.add(place)) return "is used more than once";
  return "";
}

void Check::check_entry(uint64_t guest, L2Entry entry) {
  if (entry.kind() == ClusterKind::kUnallocated) return;
  const ByteRange place = entry.place(geometry_);
  const std::string fault = fault_of(entry, place);
  if (!fault.empty()) {
    found(absl::StrFormat("guest offset %#x: %s at offset %#x %s", guest,
                          entry.kind() == ClusterKind::kCompressed
                              ? "the compressed cluster"
                              : "the cluster",
                          place.offset, fault));
    return;
  }
  result_.image_end_offset = std::max(result_.image_end_offset, place.end());
  ++result_.allocated_clusters;
  if (entry.kind() == ClusterKind::kCompressed) {
    ++result_.compressed_clusters;
    // As QEMU counts in a qcow2.
    ++result_.fragmented_clusters;
    return;
  }
  if (expected_ != 0 && place.offset != expected_)
    ++result_.fragmented_clusters;
  expected_ = place.end();
}

absl::StatusOr<CheckResult> Check::run() {
  result_.total_clusters =
      divide_round_up(geometry_.size_bytes, geometry_.cluster_bytes());
  absl::Status status = enter_header();
  if (!status.ok()) return status;
  enter_tables();
  for (size_t i = 0; i < sound_.size(); ++i) {
    if (options_.cancelled != nullptr && *options_.cancelled)
      return absl::CancelledError("the check was cancelled");
    if (options_.progress) options_.progress(i, sound_.size());
    check_table(sound_[i]);
  }
  if (options_.progress) options_.progress(sound_.size(), sound_.size());
  end_report();
  return result_;
}

}  // namespace

absl::StatusOr<CheckResult> check_image(ByteChannel* file,
                                        const CheckOptions& options) {
  if (options.fix_leaks || options.fix_errors)
    return absl::UnimplementedError("qcow: images cannot be repaired");
  const absl::StatusOr<Header> header = read_header(file);
  if (!header.ok()) return header.status();
  absl::StatusOr<UsedSectors> used = UsedSectors::create(
      divide_round_up(file->length_bytes(), kSectorSizeBytes) +
      header->cluster_size_bytes() / kSectorSizeBytes);
  if (!used.ok()) return used.status();
  return Check(file, *header, *std::move(used), options).run();
}

}  // namespace spindle::qcow

#include "formats/qcow2/findings.h"

#include "absl/strings/str_format.h"

namespace spindle::qcow2 {

// Scripts and people know these lines from qemu-img.
std::string to_line(const Finding& finding) {
  const uint64_t a = finding.a;
  const uint64_t b = finding.b;
  const uint64_t c = finding.c;
  const char* const verb = finding.repairing ? "Repairing" : "ERROR";
  switch (finding.kind) {
    case Finding::Kind::kBeyondEnd:
      return absl::StrFormat(
          "ERROR: counting reference for region exceeding the end of the file "
          "by one cluster or more: offset 0x%x size 0x%x",
          a, b);
    case Finding::Kind::kOverflow:
      return absl::StrFormat(
          "ERROR: overflow cluster offset=0x%x\n"
          "Use qemu-img amend to increase the refcount entry width or qemu-img "
          "convert to create a clean copy if the image cannot be opened for "
          "writing",
          a);
    case Finding::Kind::kL1ReservedBits:
      return absl::StrFormat("ERROR found L1 entry with reserved bits set: %x",
                             a);
    case Finding::Kind::kL2TableUnaligned:
      return absl::StrFormat(
          "ERROR l2_offset=%x: Table is not cluster aligned; L1 entry "
          "corrupted",
          a);
    case Finding::Kind::kL2TableUnreadable:
      return "ERROR: I/O error in check_refcounts_l2";
    case Finding::Kind::kL1TableUnreadable:
      return "ERROR: I/O error in check_refcounts_l1";
    case Finding::Kind::kL2ReservedBits:
      return absl::StrFormat("ERROR found l2 entry with reserved bits set: %x",
                             a);
    case Finding::Kind::kCompressedCopied:
      return absl::StrFormat(
          "ERROR: coffset=0x%x: copied flag must never be set for compressed "
          "clusters",
          a);
    case Finding::Kind::kCompressedExternal:
      return absl::StrFormat(
          "ERROR compressed cluster %d with data file, entry=0x%x", a, b);
    case Finding::Kind::kCompressedSubclusters:
      return absl::StrFormat(
          "ERROR compressed cluster %d with non-zero subcluster allocation "
          "bitmap, entry=0x%x",
          a, b);
    case Finding::Kind::kSubclustersBoth:
      return absl::StrFormat(
          "ERROR offset=%x: Allocated cluster has corrupted subcluster "
          "allocation bitmap",
          a);
    case Finding::Kind::kUnallocatedSubclusters:
      return "ERROR: Unallocated cluster has non-zero subcluster allocation "
             "map";
    case Finding::Kind::kPreallocatedUnaligned:
      return absl::StrFormat(
          "%s offset=%x: Preallocated cluster is not properly aligned; L2 "
          "entry corrupted.",
          verb, a);
    case Finding::Kind::kDataUnaligned:
      return absl::StrFormat(
          "ERROR offset=%x: Data cluster is not properly aligned; L2 entry "
          "corrupted.",
          a);
    case Finding::Kind::kCopiedOfL2Table:
      return absl::StrFormat(
          "%s OFLAG_COPIED L2 cluster: l1_index=%d l1_entry=%x refcount=%d",
          verb, a, b, c);
    case Finding::Kind::kCopiedOfData:
      return absl::StrFormat(
          "%s OFLAG_COPIED data cluster: l2_entry=%x refcount=%d", verb, a, b);
    case Finding::Kind::kBlockReservedBits:
      return absl::StrFormat(
          "ERROR refcount table entry %d has reserved bits set", a);
    case Finding::Kind::kBlockUnaligned:
      return absl::StrFormat(
          "ERROR refcount block %d is not cluster aligned; refcount table "
          "entry corrupted",
          a);
    case Finding::Kind::kBlockBeyondEnd:
      return absl::StrFormat("%s refcount block %d is outside image", verb, a);
    case Finding::Kind::kBlockRefcount:
      return absl::StrFormat("ERROR refcount block %d refcount=%d", a, b);
    case Finding::Kind::kBlockOffsetUnaligned:
      return absl::StrFormat(
          "qcow2: Image is corrupt: Refblock offset %#x unaligned (reftable "
          "index: %#x); further non-fatal corruption events will be suppressed",
          a, b);
    case Finding::Kind::kNoRefcount:
      return absl::StrFormat(
          "Can't get refcount for cluster %d: Input/output error", a);
    case Finding::Kind::kRefcountTooLow:
      return absl::StrFormat("%s cluster %d refcount=%d reference=%d", verb, a,
                             b, c);
    case Finding::Kind::kRefcountTooHigh:
      return absl::StrFormat("%s cluster %d refcount=%d reference=%d",
                             finding.repairing ? "Repairing" : "Leaked", a, b,
                             c);
  }
  return "";
}

void Findings::say(const std::function<void(absl::string_view)>& report,
                   CheckResult* total) {
  for (const Finding& line : lines_) report(to_line(line));
  lines_.clear();
  if (dropped_lines_ != 0) {
    report(absl::StrFormat("%d more findings are not listed", dropped_lines_));
    dropped_lines_ = 0;
  }
  total->check_errors += counts.check_errors;
  total->corruptions += counts.corruptions;
  total->leaks += counts.leaks;
  total->corruptions_fixed += counts.corruptions_fixed;
  total->leaks_fixed += counts.leaks_fixed;
  total->allocated_clusters += counts.allocated_clusters;
  total->fragmented_clusters += counts.fragmented_clusters;
  total->compressed_clusters += counts.compressed_clusters;
  counts = CheckResult();
}

}  // namespace spindle::qcow2

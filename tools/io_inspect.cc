// The commands of spindle-io that say what the image is like.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/checked_math.h"
#include "engine/jobs/sector_status.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tools/image_report.h"
#include "tools/io_command.h"
#include "tools/io_image.h"
#include "tools/io_request.h"
#include "tools/io_text.h"

namespace spindle {
namespace {

// Bytes from `offset` on that are all the image's own, or all not.
struct AllocatedRun {
  uint64_t length = 0;
  bool allocated = false;
};

absl::StatusOr<AllocatedRun> allocated_run(IoImage& image, ByteRange range) {
  AllocatedRun run;
  while (!range.empty()) {
    const absl::StatusOr<BlockStatus> status =
        sector_status(image.device(), range, BlockStatusScope::kThisLayer);
    if (!status.ok()) return status.status();
    if (run.length != 0 && status->allocated != run.allocated) break;
    run.allocated = status->allocated;
    run.length += status->length;
    range = {range.offset + status->length, range.length - status->length};
  }
  return run;
}

IoOutcome run_length(IoCall& call) {
  const auto bytes = static_cast<double>(call.image->length_bytes());
  std::printf("%s\n", scaled_size(bytes).c_str());
  return IoOutcome::kDone;
}

// Where the vmstate area begins: behind the disk's last L2 table.
uint64_t vm_state_offset(const ImageReport& report) {
  if (report.format != "qcow2") return 0;
  const uint64_t cluster = report.cluster_size_bytes.value_or(0);
  const bool extended = report.format_specific.value("extended-l2", false);
  const uint64_t table_covers = cluster * (cluster / (extended ? 16 : 8));
  return (report.virtual_size_bytes + table_covers - 1) / table_covers *
         table_covers;
}

IoOutcome run_info(IoCall& call) {
  // From the file: it has all that a header can say.
  const ImageArgument image{
      .name = call.image->own_filename(),
      .format = std::string(call.image->device().driver().format_name())};
  const absl::StatusOr<ImageReport> report =
      make_report(ImageOpener(builtin_drivers(), tool_policy()), image,
                  /*force_share=*/true);
  if (!report.ok()) return IoOutcome::kFailed;
  std::printf(
      "format name: %s\ncluster size: %s\nvm state offset: %s\n%s",
      report->format.c_str(),
      scaled_size(static_cast<double>(report->cluster_size_bytes.value_or(0)))
          .c_str(),
      scaled_size(static_cast<double>(vm_state_offset(*report))).c_str(),
      format_specific_text(*report).c_str());
  return IoOutcome::kDone;
}

IoOutcome run_map(IoCall& call) {
  const uint64_t end = call.image->length_bytes();
  for (uint64_t offset = 0; offset < end;) {
    const absl::StatusOr<AllocatedRun> run =
        allocated_run(*call.image, {offset, end - offset});
    if (!run.ok()) return report_failure("block status", run.status());
    std::printf("%s (0x%llx) bytes %s at offset %s (0x%llx)\n",
                scaled_size(static_cast<double>(run->length)).c_str(),
                static_cast<unsigned long long>(run->length),
                run->allocated ? "    allocated" : "not allocated",
                scaled_size(static_cast<double>(offset)).c_str(),
                static_cast<unsigned long long>(offset));
    offset += run->length;
  }
  return IoOutcome::kDone;
}

IoOutcome run_alloc(IoCall& call) {
  const std::optional<uint64_t> offset = read_number(call.argv[1]);
  if (!offset.has_value()) return IoOutcome::kFailed;
  std::optional<uint64_t> wanted = kSectorSizeBytes;
  if (call.argc == 3) wanted = read_number(call.argv[2]);
  if (!wanted.has_value()) return IoOutcome::kFailed;
  const uint64_t end = call.image->length_bytes();
  const uint64_t count = std::min(*wanted, end - std::min(end, *offset));
  uint64_t allocated = 0;
  for (uint64_t done = 0; done < count;) {
    const absl::StatusOr<AllocatedRun> run =
        allocated_run(*call.image, {*offset + done, count - done});
    if (!run.ok()) return report_failure("block status", run.status());
    if (run->allocated) allocated += run->length;
    done += run->length;
  }
  std::printf("%llu/%llu bytes allocated at offset %s\n",
              static_cast<unsigned long long>(allocated),
              static_cast<unsigned long long>(count),
              scaled_size(static_cast<double>(*offset)).c_str());
  return IoOutcome::kDone;
}

constexpr IoCommand kCommands[] = {
    {.name = "length",
     .short_name = "l",
     .summary = "gets the length of the current file",
     .run = run_length},
    {.name = "info",
     .short_name = "i",
     .summary = "prints information about the current file",
     .run = run_info},
    {.name = "map",
     .arguments = "",
     .summary = "prints the allocated areas of a file",
     .run = run_map},
    {.name = "alloc",
     .short_name = "a",
     .min_arguments = 1,
     .max_arguments = 2,
     .arguments = "offset [count]",
     .summary = "checks if offset is allocated in the file",
     .run = run_alloc},
};

}  // namespace

absl::Span<const IoCommand> io_inspect_commands() { return kCommands; }

}  // namespace spindle

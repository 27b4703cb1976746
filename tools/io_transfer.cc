// The commands of spindle-io that move data and wait for it.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "engine/cache_mode.h"
#include "engine/sector.h"
#include "tools/io_command.h"
#include "tools/io_flags.h"
#include "tools/io_image.h"
#include "tools/io_request.h"
#include "tools/io_text.h"

namespace spindle {
namespace {

// The two numbers that most commands end in.  Nothing, and a message, if they
// are none.
struct OffsetAndLength {
  uint64_t offset;
  uint64_t length;
};
std::optional<OffsetAndLength> read_range(const IoCall& call, int first,
                                          bool any_length,
                                          const char* complaint) {
  const std::optional<uint64_t> offset = read_number(call.argv[first]);
  if (!offset.has_value()) return std::nullopt;
  const std::optional<uint64_t> length = read_number(call.argv[first + 1]);
  if (!length.has_value()) return std::nullopt;
  if (*length > kMaxIoBytes && !any_length) {
    std::printf("length cannot exceed %llu%s, given %s\n",
                static_cast<unsigned long long>(kMaxIoBytes), complaint,
                call.argv[first + 1]);
    return std::nullopt;
  }
  return OffsetAndLength{*offset, *length};
}

bool is_whole_sectors(const OffsetAndLength& range) {
  const auto check = [](uint64_t number, const char* name) {
    if (number % kSectorSizeBytes == 0) return true;
    std::printf("%llu is not a sector-aligned value for '%s'\n",
                static_cast<unsigned long long>(number), name);
    return false;
  };
  return check(range.offset, "offset") && check(range.length, "count");
}

IoOutcome refuse(const char* message) {
  std::printf("%s\n", message);
  return IoOutcome::kFailed;
}

// What of the data -P is about.
struct Verified {
  uint64_t from = 0;
  uint64_t count = 0;
};
std::optional<Verified> read_verified(const IoFlags& flags, uint64_t length) {
  Verified part{.from = 0, .count = length};
  if (flags.from != nullptr) {
    const auto from = read_number(flags.from);
    if (!from.has_value()) return std::nullopt;
    part.from = *from;
  }
  if (flags.length != nullptr) {
    const auto count = read_number(flags.length);
    if (!count.has_value()) return std::nullopt;
    part.count = *count;
  } else {
    part.count = length - std::min(part.from, length);
  }
  if (part.from <= length && part.count <= length - part.from) return part;
  std::printf("pattern verification range exceeds end of read data\n");
  return std::nullopt;
}

absl::Status read_vmstate(IoImage& image, IoRequest& request) {
  const absl::Status status =
      image.device().driver().read_vmstate(request.qiov(), request.offset());
  if (!absl::IsOutOfRange(status)) return status;
  // Nothing can be there: zeroes, as where nothing is.
  request.qiov().fill(0);
  return absl::OkStatus();
}

absl::Status write_vmstate(IoImage& image, IoRequest& request) {
  const absl::Status status =
      image.device().driver().write_vmstate(request.qiov(), request.offset());
  return status.ok() && is_writethrough(image.device().cache_mode())
             ? image.device().flush()
             : status;
}

absl::Status do_read(IoImage& image, IoRequest& request) {
  if (request.flags().vmstate) return read_vmstate(image, request);
  absl::Status status = request.check_range();
  const IoVector qiov = request.qiov();
  if (!status.ok() || qiov.empty()) return status;
  return image.device().pread(qiov, request.offset());
}

IoOutcome finish_read(IoCall& call, IoRequest& request, Verified part) {
  const absl::Status status = do_read(*call.image, request);
  call.image->collect_finished();
  if (!status.ok()) return report_failure(call.command->name, status);
  const bool right = !request.flags().pattern.has_value() ||
                     request.verify(part.from, part.count);
  request.report("read");
  return right ? IoOutcome::kDone : IoOutcome::kFailed;
}

IoOutcome run_read(IoCall& call) {
  const std::optional<IoFlags> flags = parse_io_flags(call, "bCl:pP:qs:v");
  if (!flags.has_value()) return IoOutcome::kFailed;
  if (flags->first != call.argc - 2) return show_usage(call);
  const auto range = read_range(call, flags->first, /*any_length=*/false, "");
  if (!range.has_value()) return IoOutcome::kFailed;
  if (!flags->pattern.has_value() &&
      (flags->from != nullptr || flags->length != nullptr)) {
    return show_usage(call);
  }
  const auto part = read_verified(*flags, range->length);
  if (!part.has_value()) return IoOutcome::kFailed;
  if (flags->vmstate && !is_whole_sectors(*range)) return IoOutcome::kFailed;
  IoRequest request(*call.image, *flags, range->offset, {range->length},
                    kReadFill);
  return finish_read(call, request, *part);
}

IoOutcome run_readv(IoCall& call) {
  const std::optional<IoFlags> flags = parse_io_flags(call, "CP:qv");
  if (!flags.has_value()) return IoOutcome::kFailed;
  if (flags->first > call.argc - 2) return show_usage(call);
  const auto offset = read_number(call.argv[flags->first]);
  if (!offset.has_value()) return IoOutcome::kFailed;
  const auto lengths = read_lengths(call, flags->first + 1);
  if (!lengths.has_value()) return IoOutcome::kFailed;
  IoRequest request(*call.image, *flags, *offset, *lengths, kReadFill);
  return finish_read(call, request, {0, request.length_bytes()});
}

const char* contradiction(const IoFlags& flags) {
  if (flags.vmstate && flags.zeroes)
    return "-b and -z cannot be specified at the same time";
  if (flags.fua && (flags.vmstate || flags.compressed))
    return "-f and -b or -c cannot be specified at the same time";
  if (flags.no_fallback && !flags.zeroes)
    return "-n requires -z to be specified";
  if (flags.may_unmap && !flags.zeroes) return "-u requires -z to be specified";
  if (int{flags.zeroes} + int{flags.pattern.has_value()} +
          int{flags.from != nullptr} >
      1) {
    return "Only one of -z, -P, and -s can be specified at the same time";
  }
  return nullptr;
}

// The file's bytes, over and over.
bool fill_from_file(const char* filename, absl::Span<uint8_t> bytes) {
  std::ifstream file(filename, std::ios::binary);
  const std::string found(std::istreambuf_iterator<char>(file), {});
  if (!file.good() || found.empty()) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: %s\n", filename,
                 file.is_open() ? "file is empty" : std::strerror(errno));
    return false;
  }
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<uint8_t>(found[i % found.size()]);
  return true;
}

absl::Status do_write(IoImage& image, IoRequest& request) {
  const IoFlags& flags = request.flags();
  BlockDevice& device = image.device();
  if (flags.vmstate) return write_vmstate(image, request);
  absl::Status status = request.check_range();
  if (!status.ok()) return status;
  if (flags.compressed && !flags.zeroes) {
    return device.write_compressed(request.qiov(),
                                   Sector::from_byte_offset(request.offset()));
  }
  if (!flags.zeroes) {
    const IoVector qiov = request.qiov();
    if (qiov.empty()) return absl::OkStatus();
    return device.pwrite(qiov, request.offset(), {.fua = flags.fua});
  }
  status = device.write_zeroes(request.range(), request.zeroes_flags());
  return status.ok() && flags.fua ? device.flush() : status;
}

IoOutcome finish_write(IoCall& call, IoRequest& request) {
  const absl::Status status = do_write(*call.image, request);
  call.image->collect_finished();
  if (!status.ok()) return report_failure(call.command->name, status);
  request.report("wrote");
  return IoOutcome::kDone;
}

IoOutcome run_write(IoCall& call) {
  const std::optional<IoFlags> flags = parse_io_flags(call, "bcCfnpP:qs:uz");
  if (!flags.has_value()) return IoOutcome::kFailed;
  if (flags->first != call.argc - 2) return show_usage(call);
  const char* const wrong = contradiction(*flags);
  if (wrong != nullptr) return refuse(wrong);
  const auto range =
      read_range(call, flags->first, flags->no_fallback, " without -n");
  if (!range.has_value()) return IoOutcome::kFailed;
  if ((flags->vmstate || flags->compressed) && !is_whole_sectors(*range))
    return IoOutcome::kFailed;
  if (!flags->vmstate && !flags->may_unmap) {
    const absl::Status grown =
        call.image->grow_within_sector(range->offset, range->length);
    if (!grown.ok()) return report_failure(call.command->name, grown);
  }
  IoRequest request(*call.image, *flags, range->offset, {range->length},
                    flags->pattern.value_or(kWritePattern));
  if (flags->from != nullptr && !fill_from_file(flags->from, request.bytes()))
    return IoOutcome::kFailed;
  return finish_write(call, request);
}

IoOutcome run_writev(IoCall& call) {
  const std::optional<IoFlags> flags = parse_io_flags(call, "CfP:q");
  if (!flags.has_value()) return IoOutcome::kFailed;
  if (flags->first > call.argc - 2) return show_usage(call);
  const auto offset = read_number(call.argv[flags->first]);
  if (!offset.has_value()) return IoOutcome::kFailed;
  const auto lengths = read_lengths(call, flags->first + 1);
  if (!lengths.has_value()) return IoOutcome::kFailed;
  const absl::Status grown = call.image->grow_within_sector(
      *offset, std::accumulate(lengths->begin(), lengths->end(), uint64_t{0}));
  if (!grown.ok()) return report_failure(call.command->name, grown);
  IoRequest request(*call.image, *flags, *offset, *lengths,
                    flags->pattern.value_or(kWritePattern));
  return finish_write(call, request);
}

IoOutcome run_discard(IoCall& call) {
  const std::optional<IoFlags> flags = parse_io_flags(call, "Cq");
  if (!flags.has_value()) return IoOutcome::kFailed;
  if (flags->first != call.argc - 2) return show_usage(call);
  const auto range = read_range(call, flags->first, /*any_length=*/false, "");
  if (!range.has_value()) return IoOutcome::kFailed;
  IoFlags no_memory = *flags;
  no_memory.zeroes = true;
  IoRequest request(*call.image, no_memory, range->offset, {range->length}, 0);
  absl::Status status = request.check_range();
  if (status.ok() && !call.image->ignores_discards())
    status = call.image->device().discard(request.range());
  call.image->collect_finished();
  if (!status.ok()) return report_failure("discard", status);
  request.report("discard");
  return IoOutcome::kDone;
}

IoOutcome run_flush(IoCall& call) {
  const absl::Status status = call.image->device().flush();
  return status.ok() ? IoOutcome::kDone : IoOutcome::kFailed;
}

constexpr char kReadDetails[] =
    " -b         from the vmstate area instead of the disk\n"
    " -C         numbers only, separated by commas\n"
    " -l count   so many bytes must have the pattern (all)\n"
    " -p         nothing; older scripts give it\n"
    " -P byte    the bytes must all be this one\n"
    " -q         no report and no dump\n"
    " -s start   the pattern begins so many bytes behind off (0)\n"
    " -v         the bytes themselves\n"
    "\n"
    " \"read -v 4k 64\" shows 64 bytes, 4 KiB into the image.\n";
constexpr char kReadvDetails[] =
    " Each length has a buffer of its own; it remains one request.\n"
    "\n"
    " -C         numbers only, separated by commas\n"
    " -P byte    the bytes must all be this one\n"
    " -q         no report and no dump\n"
    " -v         the bytes themselves\n";
constexpr char kWriteDetails[] =
    " The bytes are 0xcd, unless told otherwise.\n"
    "\n"
    " -b         into the vmstate area instead of the disk\n"
    " -c         compressed; whole clusters only\n"
    " -C         numbers only, separated by commas\n"
    " -f         durable when it returns\n"
    " -n         with -z: an error rather than writing zeroes one by one\n"
    " -p         nothing; older scripts give it\n"
    " -P byte    this one\n"
    " -q         no report\n"
    " -s file    the bytes of a file, over and over\n"
    " -u         with -z: what held the data may be given up\n"
    " -z         zeroes, by the quickest way that the format has\n"
    "\n"
    " \"write -P 7 4k 64k\" writes 64 KiB, 4 KiB into the image.\n";
constexpr char kWritevDetails[] =
    " Each length has a buffer of its own; it remains one request.\n"
    "\n"
    " -C         numbers only, separated by commas\n"
    " -f         durable when it returns\n"
    " -P byte    this one instead of 0xcd\n"
    " -q         no report\n";
constexpr char kDiscardDetails[] =
    " -C         numbers only, separated by commas\n"
    " -q         no report\n";

constexpr IoCommand kCommands[] = {
    {.name = "read",
     .short_name = "r",
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .arguments = "[-abCqv] [-P pattern [-s off] [-l len]] off len",
     .summary = "reads a number of bytes at a specified offset",
     .details = kReadDetails,
     .run = run_read},
    {.name = "readv",
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .arguments = "[-Cqv] [-P pattern] off len [len..]",
     .summary = "reads a number of bytes at a specified offset",
     .details = kReadvDetails,
     .run = run_readv},
    {.name = "write",
     .short_name = "w",
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .writes = true,
     .arguments = "[-bcCfnquz] [-P pattern | -s source_file] off len",
     .summary = "writes a number of bytes at a specified offset",
     .details = kWriteDetails,
     .run = run_write},
    {.name = "writev",
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .writes = true,
     .arguments = "[-Cfq] [-P pattern] off len [len..]",
     .summary = "writes a number of bytes at a specified offset",
     .details = kWritevDetails,
     .run = run_writev},
    {.name = "discard",
     .short_name = "d",
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .writes = true,
     .arguments = "[-Cq] off len",
     .summary = "discards a number of bytes at a specified offset",
     .details = kDiscardDetails,
     .run = run_discard},
    {.name = "flush",
     .short_name = "f",
     .summary = "flush all in-core file state to disk",
     .run = run_flush},
};

}  // namespace

absl::Span<const IoCommand> io_transfer_commands() { return kCommands; }

}  // namespace spindle

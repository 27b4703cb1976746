// The commands of spindle-io that submit a request and do not wait for it.
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "tools/io_command.h"
#include "tools/io_flags.h"
#include "tools/io_image.h"
#include "tools/io_request.h"
#include "tools/io_text.h"

namespace spindle {
namespace {

// Keeps the request until it has been collected.
uint64_t track(IoCall& call, std::shared_ptr<IoRequest> request,
               void (*finish)(IoRequest&, absl::Status)) {
  return call.image->track(
      [request = std::move(request), finish](const absl::Status& status) {
        finish(*request, status);
      });
}

void finish_read(IoRequest& request, absl::Status status) {
  if (!status.ok()) {
    report_failure("readv", status);
    return;
  }
  if (request.flags().pattern.has_value())
    request.verify(0, request.length_bytes());
  request.report("read");
}

void finish_write(IoRequest& request, absl::Status status) {
  if (status.ok()) {
    request.report("wrote");
  } else {
    report_failure("aio_write", status);
  }
}

IoOutcome run_aio_read(IoCall& call) {
  const std::optional<IoFlags> flags = parse_io_flags(call, "CP:iqv");
  if (!flags.has_value()) return IoOutcome::kFailed;
  if (flags->invalid) {
    std::printf("injecting invalid read request\n");
    return IoOutcome::kDone;
  }
  if (flags->first > call.argc - 2) return show_usage(call);
  const auto offset = read_number(call.argv[flags->first]);
  if (!offset.has_value()) return IoOutcome::kFailed;
  const auto lengths = read_lengths(call, flags->first + 1);
  if (!lengths.has_value()) return IoOutcome::kFailed;
  auto request = std::make_shared<IoRequest>(*call.image, *flags, *offset,
                                             *lengths, kReadFill);
  const absl::Status status = request->check_range();
  if (!status.ok()) {
    finish_read(*request, status);
    return IoOutcome::kDone;
  }
  call.image->device().aio_preadv(*offset, request->qiov(),
                                  track(call, request, finish_read));
  return IoOutcome::kDone;
}

IoOutcome submit_zeroes(IoCall& call, const IoFlags& flags, uint64_t offset) {
  const auto length = read_number(call.argv[flags.first + 1]);
  if (!length.has_value()) return IoOutcome::kFailed;
  auto request = std::make_shared<IoRequest>(*call.image, flags, offset,
                                             std::vector<uint64_t>{*length}, 0);
  const absl::Status status = request->check_range();
  if (!status.ok()) {
    finish_write(*request, status);
    return IoOutcome::kDone;
  }
  IoImage* const image = call.image;
  const uint64_t id =
      image->track([request, image](const absl::Status& zeroed) {
        const bool durable = zeroed.ok() && request->flags().fua;
        finish_write(*request, durable ? image->device().flush() : zeroed);
      });
  image->device().aio_write_zeroes(request->range(), request->zeroes_flags(),
                                   id);
  return IoOutcome::kDone;
}

IoOutcome submit_write(IoCall& call, const IoFlags& flags, uint64_t offset) {
  const auto lengths = read_lengths(call, flags.first + 1);
  if (!lengths.has_value()) return IoOutcome::kFailed;
  auto request =
      std::make_shared<IoRequest>(*call.image, flags, offset, *lengths,
                                  flags.pattern.value_or(kWritePattern));
  const absl::Status status = request->check_range();
  if (!status.ok()) {
    finish_write(*request, status);
    return IoOutcome::kDone;
  }
  call.image->device().aio_pwritev(offset, request->qiov(),
                                   track(call, request, finish_write),
                                   {.fua = flags.fua});
  return IoOutcome::kDone;
}

IoOutcome run_aio_write(IoCall& call) {
  const std::optional<IoFlags> flags = parse_io_flags(call, "CfiP:quz");
  if (!flags.has_value()) return IoOutcome::kFailed;
  if (flags->invalid) {
    std::printf("injecting invalid write request\n");
    return IoOutcome::kDone;
  }
  if (flags->first > call.argc - 2) return show_usage(call);
  if (flags->zeroes && flags->first != call.argc - 2) {
    std::printf("-z supports only a single length parameter\n");
    return IoOutcome::kFailed;
  }
  if (flags->may_unmap && !flags->zeroes) {
    std::printf("-u requires -z to be specified\n");
    return IoOutcome::kFailed;
  }
  const auto offset = read_number(call.argv[flags->first]);
  if (!offset.has_value()) return IoOutcome::kFailed;
  return flags->zeroes ? submit_zeroes(call, *flags, *offset)
                       : submit_write(call, *flags, *offset);
}

IoOutcome run_aio_flush(IoCall& call) {
  call.image->wait_for_all();
  return IoOutcome::kDone;
}

constexpr char kAioReadDetails[] =
    " Returns when the request has been submitted; what becomes of it is told\n"
    " later, by aio_flush at the latest, and is no error of this command.\n"
    "\n"
    " -C         numbers only, separated by commas\n"
    " -i         nothing is read: as if the request had been refused\n"
    " -P byte    the bytes must all be this one\n"
    " -q         no report and no dump\n"
    " -v         the bytes themselves\n";
constexpr char kAioWriteDetails[] =
    " Returns when the request has been submitted; what becomes of it is told\n"
    " later, by aio_flush at the latest, and is no error of this command.\n"
    "\n"
    " -C         numbers only, separated by commas\n"
    " -f         durable when it completes\n"
    " -i         nothing is written: as if the request had been refused\n"
    " -P byte    this one instead of 0xcd\n"
    " -q         no report\n"
    " -u         with -z: what held the data may be given up\n"
    " -z         zeroes, by the quickest way that the format has\n";

constexpr IoCommand kCommands[] = {
    {.name = "aio_read",
     .short_name = nullptr,
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .needs_image = true,
     .writes = false,
     .arguments = "[-Ciqv] [-P pattern] off len [len..]",
     .summary = "begins to read some bytes",
     .details = kAioReadDetails,
     .run = run_aio_read},
    {.name = "aio_write",
     .short_name = nullptr,
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .needs_image = true,
     .writes = true,
     .arguments = "[-Cfiquz] [-P pattern] off len [len..]",
     .summary = "begins to write some bytes",
     .details = kAioWriteDetails,
     .run = run_aio_write},
    {.name = "aio_flush",
     .short_name = nullptr,
     .min_arguments = 0,
     .max_arguments = 0,
     .needs_image = true,
     .writes = false,
     .arguments = "",
     .summary = "waits for all that was begun",
     .details = nullptr,
     .run = run_aio_flush},
};

}  // namespace

absl::Span<const IoCommand> io_aio_commands() { return kCommands; }

}  // namespace spindle

// The commands of spindle-io that submit a request and do not wait for it.
#include <cstdio>
#include <memory>
#include <numeric>
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

// What is out of range is refused when it is collected, as all else is.
absl::Status result_of(const IoRequest& request, const absl::Status& status) {
  const absl::Status range = request.check_range();
  return range.ok() ? status : range;
}

void submit_read(IoImage& image, std::shared_ptr<IoRequest> request) {
  const uint64_t id = image.track([request](const absl::Status& status) {
    finish_read(*request, result_of(*request, status));
  });
  if (request->check_range().ok()) {
    image.device().aio_preadv(request->offset(), request->qiov(), id);
  } else {
    image.device().aio_preadv(0, IoVector(), id);
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
  submit_read(*call.image, std::move(request));
  return IoOutcome::kDone;
}

void submit_zeroes(IoImage* image, std::shared_ptr<IoRequest> request) {
  const uint64_t id =
      image->track([request, image](const absl::Status& zeroed) {
        absl::Status status = result_of(*request, zeroed);
        if (status.ok() && request->flags().fua)
          status = image->device().flush();
        finish_write(*request, status);
      });
  const bool is_inside = request->check_range().ok();
  image->device().aio_write_zeroes(is_inside ? request->range() : ByteRange{},
                                   request->zeroes_flags(), id);
}

void submit_write(IoImage* image, std::shared_ptr<IoRequest> request) {
  const uint64_t id = image->track([request](const absl::Status& status) {
    finish_write(*request, result_of(*request, status));
  });
  if (request->check_range().ok()) {
    image->device().aio_pwritev(request->offset(), request->qiov(), id,
                                {.fua = request->flags().fua});
  } else {
    image->device().aio_pwritev(0, IoVector(), id);
  }
}

// Nothing, and a message, if one is wrong.
std::optional<std::vector<uint64_t>> lengths_to_write(const IoCall& call,
                                                      const IoFlags& flags) {
  if (!flags.zeroes) return read_lengths(call, flags.first + 1);
  const auto length = read_number(call.argv[flags.first + 1]);
  if (!length.has_value()) return std::nullopt;
  return std::vector<uint64_t>{*length};
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
  const auto lengths = lengths_to_write(call, *flags);
  if (!lengths.has_value()) return IoOutcome::kFailed;
  if (!flags->may_unmap) {
    const absl::Status grown = call.image->grow_within_sector(
        *offset,
        std::accumulate(lengths->begin(), lengths->end(), uint64_t{0}));
    if (!grown.ok()) return report_failure("aio_write", grown);
  }
  auto request =
      std::make_shared<IoRequest>(*call.image, *flags, *offset, *lengths,
                                  flags->pattern.value_or(kWritePattern));
  if (flags->zeroes) {
    submit_zeroes(call.image, std::move(request));
  } else {
    submit_write(call.image, std::move(request));
  }
  return IoOutcome::kDone;
}

IoOutcome run_aio_flush(IoCall& call) {
  if (call.image->collect_all()) return IoOutcome::kDone;
  return complain("what is left is stopped at a breakpoint, see 'help resume'");
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
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .arguments = "[-Ciqv] [-P pattern] off len [len..]",
     .summary = "asynchronously reads a number of bytes",
     .details = kAioReadDetails,
     .run = run_aio_read},
    {.name = "aio_write",
     .min_arguments = 2,
     .max_arguments = IoCommand::kAnyCount,
     .writes = true,
     .arguments = "[-Cfiquz] [-P pattern] off len [len..]",
     .summary = "asynchronously writes a number of bytes",
     .details = kAioWriteDetails,
     .run = run_aio_write},
    {.name = "aio_flush",
     .summary = "completes all outstanding aio requests",
     .run = run_aio_flush},
};

}  // namespace

absl::Span<const IoCommand> io_aio_commands() { return kCommands; }

}  // namespace spindle

// Qcow2Driver: reopening, inactivating, activating, closing.
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "engine/errors.h"
#include "engine/gate.h"
#include "formats/cluster/image_files.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/driver_impl.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/runtime_options.h"
#include "formats/qcow2/snapshot_table.h"

namespace spindle::qcow2 {

ImageFiles::Reopening Qcow2Driver::current_access() const {
  const ReopenOptions access{.read_only = read_only(),
                             .direct = options_.direct,
                             .no_flush = options_.no_flush};
  ImageFiles::Reopening all{.file = access, .data_file = access, .backing = {}};
  if (backing_ != nullptr &&
      backing_->capabilities().has(Capability::kReopen)) {
    all.backing = access;
    all.backing->read_only = backing_->read_only();
  }
  return all;
}

absl::Status Qcow2Driver::load_with(const OpenOptions& options,
                                    const ImageFiles::Reopening& files) {
  absl::Status status = files_.reopen(files, current_access());
  if (!status.ok()) return status;
  options_ = options;
  parts_.reset();
  const absl::StatusOr<Header> header =
      read_shown_header(file_.get(), options_, read_only());
  return header.ok() ? load_parts(*header) : header.status();
}

absl::Status Qcow2Driver::change_options(ReopenOptions options) {
  options.read_only = read_only();
  const ImageFiles::Reopening files = files_.take_reopening(&options);
  if (options.driver_options.count(std::string(kDataFileOption)) != 0)
    return options.refuse_options();
  OpenOptions after = options_;
  after.direct = options.direct.value_or(after.direct);
  after.no_flush = options.no_flush.value_or(after.no_flush);
  for (const auto& [name, value] : options.driver_options)
    after.driver_options[name] = value;
  absl::Status status = parse_runtime_options(after, header_, true).status();
  if (status.ok() && !read_only()) status = parts_->image->rounds().settle();
  if (!status.ok()) return status;
  const OpenOptions before = options_;
  const ImageFiles::Reopening undo = current_access();
  status = load_with(after, files);
  if (!status.ok()) load_with(before, undo).IgnoreError();
  return status;
}

absl::Status Qcow2Driver::reopen(const ReopenOptions& options) {
  // Nothing may be in flight while what is allowed changes: closed for a flush
  // and the child's own reopen.
  const Gate::Closure closed(&gate_);
  if (parts_ == nullptr) return inactive_error();
  const bool has_options = options.direct.has_value() ||
                           options.no_flush.has_value() ||
                           !options.driver_options.empty();
  if (!has_options) return change_access(options.read_only);
  const OpenOptions before = options_;
  const ImageFiles::Reopening undo = current_access();
  absl::Status status = change_options(options);
  if (!status.ok() || options.read_only == read_only()) return status;
  status = change_access(options.read_only);
  // The first error counts.
  if (!status.ok()) load_with(before, undo).IgnoreError();
  return status;
}

absl::Status Qcow2Driver::change_access(bool to_read_only) {
  const auto reopen_files = [this](bool files_read_only) {
    return files_.reopen({.file = {.read_only = files_read_only},
                          .data_file = {.read_only = files_read_only},
                          .backing = {}},
                         {.file = {.read_only = read_only()},
                          .data_file = {.read_only = read_only()},
                          .backing = {}});
  };
  // The file is opened anew all the same: that forgets a failed flush.
  if (to_read_only == read_only()) return reopen_files(to_read_only);
  if (options_.snapshot.has_value()) {
    return absl::FailedPreconditionError(
        "the image shows a snapshot, which can be opened for reading only");
  }
  Image& image = *parts_->image;
  if (to_read_only) {
    absl::Status status = parts_->finish_writing();
    if (status.ok()) status = reopen_files(true);
    // Where it cannot go on with bitmaps that follow, it does not write.
    const bool goes_on = !status.ok() && parts_->bitmaps.mark_in_use().ok();
    read_only_.store(!goes_on, std::memory_order_release);
    return status;
  }
  absl::Status status = check_supported(image.header(), /*read_only=*/false);
  if (status.ok())
    status = check_table_places(image.header(), file_->length_bytes());
  if (status.ok() && image.header().is_dirty()) {
    status = absl::UnimplementedError(
        "qcow2: the image is marked dirty (its refcounts are out of date); it "
        "is repaired when it is opened for writing, not when it is reopened");
  }
  if (status.ok()) status = image.corruption().writes_allowed();
  if (status.ok()) status = reopen_files(false);
  if (!status.ok()) return status;
  status = parts_->prepare_for_writing();
  if (!status.ok()) {
    reopen_files(true).IgnoreError();
    return status;
  }
  read_only_.store(false, std::memory_order_release);
  return status;
}

absl::Status Qcow2Driver::inactivate() {
  // Closed until the locks are gone: what came later could not be written.
  const Gate::Closure closed(&gate_);
  if (parts_ == nullptr) return absl::OkStatus();
  absl::Status status;
  if (!read_only()) status = parts_->finish_writing();
  if (status.ok()) status = files_.inactivate();
  // Still active, but only with bitmaps that follow.
  if (!status.ok() && (read_only() || parts_->bitmaps.mark_in_use().ok()))
    return status;
  live_bitmaps_.forget();
  parts_.reset();
  return status;
}

absl::Status Qcow2Driver::load_again() {
  // Somebody else may have written the image meanwhile.
  absl::StatusOr<Header> header =
      read_shown_header(file_.get(), options_, read_only());
  if (!header.ok()) return header.status();
  absl::Status status = check_supported(*header, read_only());
  if (!status.ok()) return status;
  status = check_same(*header);
  if (status.ok() && encryption_ != nullptr) status = encryption_->reread();
  if (!status.ok()) return status;
  if (!read_only()) status = repair_if_dirty(file_.get(), log_, &*header);
  return status.ok() ? load(*header) : status;
}

absl::Status Qcow2Driver::check_same(const Header& header) const {
  if (header.crypt_method != header_.crypt_method) {
    return absl::FailedPreconditionError(
        absl::StrCat("crypt_method was ", header_.crypt_method, " and is now ",
                     header.crypt_method, ": the image must be opened anew"));
  }
  if (options_.open_backing &&
      header.backing_filename != header_.backing_filename) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the backing file was '", header_.backing_filename, "' and is now '",
        header.backing_filename, "': the image must be opened anew"));
  }
  // The caller's own name for it holds, whatever the image states.
  const bool is_given =
      options_.driver_options.count(std::string(kDataFileOption)) != 0;
  if (header.has_data_file() != header_.has_data_file() ||
      (!is_given && header.data_filename() != header_.data_filename())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the data file was '", header_.data_filename(), "' and is now '",
        header.data_filename(), "': the image must be opened anew"));
  }
  return absl::OkStatus();
}

absl::Status Qcow2Driver::activate() {
  const Gate::Closure closed(&gate_);
  if (parts_ != nullptr) return absl::OkStatus();
  absl::Status status = files_.activate();
  if (!status.ok()) return status;
  status = load_again();
  // Without the metadata nothing can be done with the file: others may try.
  if (!status.ok()) {
    live_bitmaps_.forget();
    files_.inactivate().IgnoreError();
  }
  return status;
}

void Qcow2Driver::log_what_is_lost(const absl::Status& why) const {
  if (!log_ || why.ok()) return;
  const auto log = [&](absl::string_view what) {
    log_(LogSeverity::kError, absl::StrCat("Failed to flush the ", what, ": ",
                                           std::strerror(errno_for(why))));
  };
  if (parts_->image->l2_tables().has_dirty()) log("L2 table cache");
  if (parts_->image->refblocks().has_dirty()) log("refcount block cache");
}

absl::Status Qcow2Driver::close() {
  absl::Status status;
  // Inactive, the file is somebody else's.
  if (!read_only() && parts_ != nullptr) {
    status = parts_->finish_writing();
    log_what_is_lost(status);
  }
  const absl::Status closed = files_.close();
  return status.ok() ? closed : status;
}

absl::Status repair_if_dirty(BlockDriver* file, const LogSink& log,
                             Header* header) {
  if (!header->is_dirty()) return absl::OkStatus();
  // Not owned: the channel lives no longer than this call.
  ByteChannel channel(std::shared_ptr<BlockDriver>(file, [](BlockDriver*) {}));
  // A repair would cut a snapshot table that breaks a limit: only for who asks
  // for it.
  SnapshotTableReader snapshots(&channel, *header);
  while (!snapshots.at_end()) {
    const absl::Status status = snapshots.next().status();
    if (!status.ok()) return status;
  }
  CheckOptions options;
  options.fix_leaks = options.fix_errors = true;
  if (log) {
    options.report = [&log](absl::string_view line) {
      log(LogSeverity::kWarning, absl::StrCat("qcow2: ", line));
    };
  }
  const absl::StatusOr<CheckResult> result =
      check_image(&channel, *header, options);
  if (!result.ok()) {
    return with_context(result.status(),
                        "the image is marked dirty and cannot be repaired");
  }
  if (result->check_errors != 0) {
    return absl::DataLossError(
        absl::StrCat("the image is marked dirty, and ", result->check_errors,
                     " errors kept it from being repaired"));
  }
  absl::StatusOr<Header> repaired = read_header_of(file, /*read_only=*/false);
  if (!repaired.ok()) return repaired.status();
  *header = *std::move(repaired);
  if (result->corruptions == 0) return absl::OkStatus();
  // The refcounts are right, and that is what the mark is about.  Whoever comes
  // upon the rest is told so.
  if (log) {
    log(LogSeverity::kWarning,
        absl::StrCat("qcow2: after a repair ", result->corruptions,
                     " corruptions are left"));
  }
  header->incompatible_features &= ~kIncompatibleDirty;
  std::array<uint8_t, 8> bytes{};
  store_big64(bytes.data(), header->incompatible_features);
  absl::Status status =
      channel.write(Purpose::kHeaderUpdate, bytes.data(), bytes.size(),
                    kIncompatibleFeaturesOffset);
  return status.ok() ? channel.flush() : status;
}

}  // namespace spindle::qcow2

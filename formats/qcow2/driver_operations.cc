// Qcow2Driver: what is done to a whole image.
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/gate.h"
#include "formats/qcow2/amend.h"
#include "formats/qcow2/amend_plan.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/driver_impl.h"
#include "formats/qcow2/header_file.h"
#include "formats/qcow2/image_size.h"
#include "formats/qcow2/runtime_options.h"

namespace spindle::qcow2 {

// ---- Check ------------------------------------------------------------------

absl::StatusOr<CheckResult> Qcow2Driver::check(const CheckOptions& options) {
  if (options.fix_leaks || options.fix_errors) return repair(options);
  std::optional<Gate::Passage> inside(std::in_place, &gate_);
  if (parts_ == nullptr) return inactive_error();
  // What is cached must be in the file.
  absl::Status status =
      read_only() ? absl::OkStatus() : parts_->image->rounds().settle();
  if (!status.ok()) return status;
  const uint64_t times_closed = gate_.times_closed();
  // Lets a closer go first; what it did to parts_ does not matter here.
  const auto pause = [&] {
    inside.reset();
    inside.emplace(&gate_);
    return gate_.times_closed() == times_closed
               ? absl::OkStatus()
               : absl::AbortedError(
                     "the image may have been changed while it was checked");
  };
  ByteChannel file(file_);
  return check_file(&file, options, pause);
}

absl::StatusOr<CheckResult> Qcow2Driver::repair(const CheckOptions& options) {
  // Closed for all of a repair: it changes what the caches have.
  const Gate::Closure closed(&gate_);
  if (parts_ == nullptr) return inactive_error();
  absl::Status status = parts_->image->rounds().settle();
  if (!status.ok()) return status;
  absl::StatusOr<CheckResult> result =
      check_file(&parts_->image->file(), options);
  // The caches knew the image as it was.
  parts_.reset();
  const absl::StatusOr<Header> header =
      read_header_of(file_.get(), read_only());
  status = header.ok() ? load_parts(*header) : header.status();
  if (!status.ok()) return result.ok() ? status : result.status();
  // What a repair changes; requests that wait at the gate read other members.
  header_.refcount_table_offset = header->refcount_table_offset;
  header_.refcount_table_clusters = header->refcount_table_clusters;
  header_.incompatible_features = header->incompatible_features;
  return result;
}

// ---- Snapshots -------------------------------------------------------------

absl::Status Qcow2Driver::may_change() const {
  if (parts_ == nullptr) return inactive_error();
  if (read_only()) return absl::PermissionDeniedError("the image is read-only");
  return absl::OkStatus();
}

// Data in a file of their own are nowhere but at one place, and not counted.
absl::Status Qcow2Driver::may_change_snapshots() const {
  if (files_.data_file == nullptr) return may_change();
  return absl::UnimplementedError(
      "an image with an external data file has no internal snapshots");
}

absl::StatusOr<std::vector<SnapshotInfo>> Qcow2Driver::list_snapshots() {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->snapshots.list();
}

absl::StatusOr<SnapshotInfo> Qcow2Driver::create_snapshot(
    const SnapshotInfo& wanted) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
  return parts_->snapshots.create(wanted);
}

absl::Status Qcow2Driver::apply_snapshot(absl::string_view snapshot) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
  // They would miss what changes.
  if (!parts_->bitmaps.empty())
    return absl::FailedPreconditionError("Device has active dirty bitmaps");
  absl::Status status = parts_->snapshots.apply(snapshot);
  note_length();
  return status;
}

absl::Status Qcow2Driver::delete_snapshot(absl::string_view snapshot) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
  return parts_->snapshots.remove(snapshot);
}

// ---- Length ----------------------------------------------------------------

absl::Status Qcow2Driver::set_length(uint64_t length_bytes,
                                     SetLengthMode mode) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  // Looked at in here: a longer disk must not be made shorter by who wanted it
  // longer.
  if (mode == SetLengthMode::kGrowOnly && length_bytes <= this->length_bytes())
    return absl::OkStatus();
  return change_length(length_bytes, Preallocation::kOff);
}

absl::Status Qcow2Driver::resize(uint64_t length_bytes,
                                 Preallocation preallocation) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return change_length(length_bytes, preallocation);
}

absl::Status Qcow2Driver::change_length(uint64_t length_bytes,
                                        Preallocation preallocation) {
  absl::Status status = parts_->bitmaps.check_resize(length_bytes);
  if (!status.ok()) return status;
  status = parts_->resizer.resize(length_bytes, preallocation,
                                  parts_->snapshots.count());
  note_length();
  return status;
}

void Qcow2Driver::note_length() {
  const uint64_t length = parts_->image->geometry().size_bytes;
  if (length == header_.size_bytes) return;
  header_.size_bytes = length;
  parts_->bitmaps.resize(length);
  length_bytes_.store(length, std::memory_order_relaxed);
  // Caches cover the image, unless their size was stated.
  const absl::StatusOr<RuntimeOptions> runtime =
      parse_runtime_options(options_, header_);
  if (runtime.ok()) parts_->image->set_cache_sizes(*runtime);
}

// ---- VM state ---------------------------------------------------------------

absl::Status Qcow2Driver::read_vmstate(const IoVector& qiov,
                                       uint64_t position_bytes) {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->vmstate.read(qiov, position_bytes);
}

absl::Status Qcow2Driver::write_vmstate(const IoVector& qiov,
                                        uint64_t position_bytes) {
  const ByteRange area{position_bytes, qiov.length_bytes()};
  while (true) {
    {
      const Gate::Passage inside(&gate_);
      if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
      const absl::StatusOr<bool> has_room = parts_->vmstate.has_room(area);
      if (!has_room.ok()) return has_room.status();
      if (*has_room) {
        absl::Status status = parts_->vmstate.write(qiov, position_bytes);
        if (!status.ok()) return status;
        break;
      }
    }
    const Gate::Closure closed(&gate_);
    if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
    absl::Status status = parts_->vmstate.make_room(area);
    if (!status.ok()) return status;
  }
  return finish_change(absl::OkStatus());
}

// ---- Bitmaps ----------------------------------------------------------------

absl::StatusOr<std::vector<DirtyBitmapInfo>> Qcow2Driver::list_bitmaps() {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->bitmaps.list();
}

absl::StatusOr<std::shared_ptr<const DirtyBitmap>> Qcow2Driver::find_bitmap(
    absl::string_view name) {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->bitmaps.find(name);
}

absl::Status Qcow2Driver::add_bitmap(const NewDirtyBitmap& wanted) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.add(wanted);
}

absl::Status Qcow2Driver::remove_bitmap(absl::string_view name) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.remove(name);
}

absl::Status Qcow2Driver::clear_bitmap(absl::string_view name) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.clear(name);
}

absl::Status Qcow2Driver::enable_bitmap(absl::string_view name, bool enabled) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.enable(name, enabled);
}

absl::Status Qcow2Driver::merge_bitmap(absl::string_view name,
                                       const DirtyBitmap& source) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.merge(name, source);
}

// ---- Amend -----------------------------------------------------------------

absl::Status Qcow2Driver::load_amended() {
  parts_.reset();
  const absl::StatusOr<Header> header =
      read_header_of(file_.get(), read_only());
  absl::Status status = header.ok() ? load_parts(*header) : header.status();
  if (!status.ok()) return status;
  // Its length is asked for outside the gate; what changes that says so itself.
  header_.version = header->version;
  header_.backing_filename = header->backing_filename;
  header_.backing_format = header->backing_format;
  header_.incompatible_features = header->incompatible_features;
  header_.compatible_features = header->compatible_features;
  header_.autoclear_features = header->autoclear_features;
  header_.compression_type = header->compression_type;
  header_.refcount_order = header->refcount_order;
  header_.refcount_table_offset = header->refcount_table_offset;
  header_.refcount_table_clusters = header->refcount_table_clusters;
  header_.extensions = header->extensions;
  return status;
}

absl::Status Qcow2Driver::amend(const AmendOptions& options) {
  AmendOptions slots = options;
  slots.changes = key_slot_changes(options.changes);
  if (slots.changes.empty())
    return amend_closed(options, [] { return absl::OkStatus(); });
  {
    // What makes no sense is refused before keys are derived.
    const Gate::Passage inside(&gate_);
    absl::Status may = may_change();
    if (may.ok()) may = plan_amend(options.changes, header_).status();
    if (!may.ok()) return may;
  }
  return encryption_->amend(slots, [&](luks::Volume::Write write) {
    return amend_closed(options, write);
  });
}

absl::Status Qcow2Driver::amend_closed(
    const AmendOptions& options,
    absl::FunctionRef<absl::Status()> change_key_slots) {
  // Closed for all of it: what the caches have changes.
  const Gate::Closure closed(&gate_);
  absl::Status status = may_change();
  if (status.ok()) status = parts_->image->corruption().writes_allowed();
  if (status.ok()) status = parts_->image->rounds().settle();
  if (!status.ok()) return status;
  const auto image = [this] {
    return parts_ == nullptr ? nullptr : parts_->image.get();
  };
  status = amend_image(
      {image, [this] { return load_amended(); },
       [this](uint64_t size_bytes) {
         return change_length(size_bytes, Preallocation::kOff);
       },
       [this] { return parts_->snapshots.rewrite_table(); }, change_key_slots},
      options);
  const absl::Status loaded = load_amended();
  return status.ok() ? loaded : status;
}

// ---- Backing file -----------------------------------------------------------

absl::Status Qcow2Driver::change_backing_file(absl::string_view filename,
                                              absl::string_view format) {
  const Gate::Closure closed(&gate_);
  absl::Status status = may_change();
  if (status.ok()) status = parts_->image->corruption().writes_allowed();
  if (status.ok()) status = parts_->image->rounds().settle();
  if (!status.ok()) return status;
  if (filename.size() > kMaxBackingFilenameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the backing file's name has ", filename.size(),
                     " bytes: the limit is ", kMaxBackingFilenameBytes));
  }
  ByteChannel& file = parts_->image->file();
  const absl::StatusOr<Header> header = read_header(&file);
  if (!header.ok()) return header.status();
  if (!filename.empty() && header->data_file_is_raw()) {
    return absl::InvalidArgumentError(
        "an image whose external data file stays valid as a raw image has no "
        "backing file");
  }
  Header next = *header;
  next.backing_filename = std::string(filename);
  next.backing_format = std::string(format);
  order_extensions(&next);
  status = replace_header(&file, &parts_->image->corruption(), *header, next);
  const absl::Status loaded = load_amended();
  return status.ok() ? loaded : status;
}

absl::Status Qcow2Driver::make_empty() {
  const Gate::Closure closed(&gate_);
  absl::Status status = may_change();
  if (!status.ok()) return status;
  Image& image = *parts_->image;
  const uint64_t end =
      align_up(length_bytes(), image.geometry().cluster_bytes());
  const DirtyRecorder::Recording recording(live_bitmaps_.recorder(),
                                           {0, length_bytes()});
  status = image.rounds().settle();
  if (!status.ok()) return status;
  // As QEMU does it: where nothing else is in the file, it becomes as if it
  // were new; else the tables stay.
  const bool is_alone = header_.version >= kVersion3 &&
                        parts_->snapshots.count() == 0 &&
                        parts_->bitmaps.empty() && files_.data_file == nullptr;
  if (is_alone) {
    status = parts_->references.drop_active_tables(0);
    return status.ok() ? give_up_unused_space(&image) : status;
  }
  status = parts_->changer.forget({0, end}, image.places_like_qemu());
  return status.ok() ? image.rounds().settle() : status;
}

}  // namespace spindle::qcow2

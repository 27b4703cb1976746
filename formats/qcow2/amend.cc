#include "formats/qcow2/amend.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/qcow2/amend_plan.h"
#include "formats/qcow2/amend_progress.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/header_file.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_width.h"
#include "formats/qcow2/snapshot_table.h"
#include "formats/qcow2/zero_expansion.h"

namespace spindle::qcow2 {
namespace {

class Amendment {
 public:
  Amendment(const AmendTarget& target, Header header, AmendPlan plan,
            const AmendOptions& options)
      : target_(target),
        header_(std::move(header)),
        plan_(std::move(plan)),
        progress_(&options, uint64_t{upgrades()} + changes_width() +
                                uint64_t{downgrades()}) {}

  absl::Status run();

 private:
  bool upgrades() const { return plan_.version > header_.version; }
  bool downgrades() const { return plan_.version < header_.version; }
  bool changes_width() const {
    return plan_.refcount_order != header_.refcount_order;
  }
  Image& image() { return *target_.image(); }

  absl::Status check_downgrade();
  absl::Status upgrade();
  absl::Status change_width();
  absl::Status change_fields();
  absl::Status resize();
  absl::Status downgrade();
  // Makes `next` the header, and opens the image with it.
  absl::Status switch_to(Header next);
  absl::Status reload();

  const AmendTarget& target_;
  // The image's; follows.
  Header header_;
  const AmendPlan plan_;
  AmendProgress progress_;
};

absl::Status Amendment::reload() {
  absl::Status status = target_.reload();
  if (!status.ok()) return status;
  absl::StatusOr<Header> header = read_header(&image().file());
  if (header.ok()) header_ = *std::move(header);
  return header.status();
}

absl::Status Amendment::switch_to(Header next) {
  order_extensions(&next);
  if (next == header_) return absl::OkStatus();
  absl::Status status =
      replace_header(&image().file(), &image().corruption(), header_, next);
  return status.ok() ? reload() : status;
}

absl::Status Amendment::check_downgrade() {
  const uint64_t size = plan_.size_bytes.value_or(header_.size_bytes);
  SnapshotTableReader reader(&image().file(), header_);
  while (!reader.at_end()) {
    const absl::StatusOr<Snapshot> snapshot = reader.next();
    if (!snapshot.ok()) return snapshot.status();
    if (snapshot->info.disk_size_bytes != size ||
        snapshot->info.vm_state_bytes > UINT32_MAX) {
      return absl::UnimplementedError(
          "Internal snapshots prevent downgrade of image");
    }
  }
  if (header_.compression_type == kCompressionZlib) return absl::OkStatus();
  const absl::StatusOr<std::vector<ListedTable>> tables =
      list_l2_tables(&image(), header_);
  if (!tables.ok()) return tables.status();
  const absl::StatusOr<bool> compressed =
      have_compressed_clusters(&image(), *tables);
  if (!compressed.ok()) return compressed.status();
  if (!*compressed) return absl::OkStatus();
  return absl::UnimplementedError(
      "Cannot downgrade an image with zstd compression type and existing "
      "compressed clusters");
}

absl::Status Amendment::upgrade() {
  bool is_complete = true;
  SnapshotTableReader reader(&image().file(), header_);
  while (!reader.at_end()) {
    const absl::StatusOr<Snapshot> snapshot = reader.next();
    if (!snapshot.ok()) return snapshot.status();
    is_complete = is_complete && snapshot->is_complete();
  }
  absl::Status status;
  if (!is_complete) {
    status = target_.rewrite_snapshot_table();
    if (status.ok()) status = reload();
  }
  if (!status.ok()) return status;
  Header next = header_;
  next.version = kVersion3;
  next.header_length = kVersion3HeaderBytes;
  return switch_to(std::move(next));
}

absl::Status Amendment::change_width() {
  const absl::StatusOr<std::vector<HostClusters>> obsolete =
      change_refcount_width(&image(), header_, plan_.refcount_order, progress_);
  if (!obsolete.ok()) return obsolete.status();
  absl::Status status = reload();
  if (!status.ok()) return status;
  for (const HostClusters& clusters : *obsolete)
    image().pending().add_durably_dropped(clusters);
  return image().rounds().settle();
}

absl::Status Amendment::change_fields() {
  Header next = header_;
  if (!plan_.data_file_is_raw)
    next.autoclear_features &= ~kAutoclearDataFileRaw;
  if (plan_.data_filename.has_value()) {
    std::erase_if(next.extensions, [](const HeaderExtension& extension) {
      return extension.type == kExtensionDataFile;
    });
    if (!plan_.data_filename->empty())
      next.extensions.push_back({kExtensionDataFile, *plan_.data_filename});
  }
  if (plan_.version >= kVersion3) {
    next.compatible_features &= ~kCompatibleLazyRefcounts;
    if (plan_.lazy_refcounts)
      next.compatible_features |= kCompatibleLazyRefcounts;
  }
  return switch_to(std::move(next));
}

absl::Status Amendment::resize() {
  if (!plan_.size_bytes.has_value() ||
      *plan_.size_bytes == header_.size_bytes) {
    return absl::OkStatus();
  }
  absl::Status status = target_.resize(*plan_.size_bytes);
  // What is cached is forgotten when the image is opened anew; also after an
  // error, before which something may have changed.
  const absl::Status settled = image().rounds().settle();
  if (status.ok()) status = settled;
  return status.ok() ? reload() : status;
}

absl::Status Amendment::downgrade() {
  const absl::StatusOr<std::vector<ListedTable>> tables =
      list_l2_tables(&image(), header_);
  if (!tables.ok()) return tables.status();
  absl::Status status = expand_zero_clusters(&image(), *tables, progress_);
  // Also what was done before an error: it is as good as before.
  const absl::Status settled = image().rounds().settle();
  if (status.ok()) status = settled;
  if (!status.ok()) return status;
  Header next = header_;
  next.version = kVersion2;
  next.header_length = kVersion2HeaderBytes;
  next.incompatible_features = 0;
  next.compatible_features = 0;
  next.autoclear_features = 0;
  next.compression_type = kCompressionZlib;
  next.unknown_fields.clear();
  return switch_to(std::move(next));
}

absl::Status Amendment::run() {
  const bool will_downgrade = downgrades();
  progress_.say(0, 1);
  absl::Status status = will_downgrade ? check_downgrade() : absl::OkStatus();
  if (status.ok() && plan_.refcount_order < header_.refcount_order) {
    const AmendOptions nobody;
    const AmendProgress silent(&nobody, 0);
    status =
        check_refcounts_fit(&image(), header_, plan_.refcount_order, silent);
  }
  if (status.ok() && upgrades()) {
    status = upgrade();
    progress_.end_step();
  }
  if (status.ok()) status = target_.change_key_slots();
  if (status.ok() && changes_width()) {
    status = change_width();
    progress_.end_step();
  }
  if (status.ok()) status = change_fields();
  if (status.ok()) status = resize();
  if (status.ok() && will_downgrade) {
    status = downgrade();
    progress_.end_step();
  }
  return status;
}

}  // namespace

absl::Status amend_image(const AmendTarget& target,
                         const AmendOptions& options) {
  absl::StatusOr<Header> header = read_header(&target.image()->file());
  if (!header.ok()) return header.status();
  absl::StatusOr<AmendPlan> plan = plan_amend(options.changes, *header);
  if (!plan.ok()) return plan.status();
  if (plan->version < kVersion3 && target.image()->keeps_discarded()) {
    return absl::FailedPreconditionError(
        "Cannot downgrade an image that is open with discard-no-unref=on: "
        "version 2 has no zero clusters to keep");
  }
  return Amendment(target, *std::move(header), *std::move(plan), options).run();
}

}  // namespace spindle::qcow2

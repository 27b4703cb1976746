// What an image needs before it can be of version 2: no cluster that is zeroes
// by its entry alone.
//
// Thread safety: one thread, with the image to itself.
#ifndef SPINDLE_FORMATS_QCOW2_ZERO_EXPANSION_H_
#define SPINDLE_FORMATS_QCOW2_ZERO_EXPANSION_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/amend_progress.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

// An L2 table, and where the guest has what it maps.
struct ListedTable {
  HostOffset host;
  GuestOffset guest;
};

// The L2 tables of the disk, and then of the snapshots; each once.  `header` is
// the image's.
// Errors: kDataLoss for a table that is out of place, those of the file.
absl::StatusOr<std::vector<ListedTable>> list_l2_tables(Image* image,
                                                        const Header& header);

// True if one of `tables` names a compressed cluster.
absl::StatusOr<bool> have_compressed_clusters(
    Image* image, const std::vector<ListedTable>& tables);

// Gives every zero cluster that `tables` name a host cluster that holds zeroes,
// or, where nothing shows through, no entry.  Whatever happens, disk and
// snapshots read as before; the changes are durable once the image is settled.
// Errors: kCancelled, those of allocation and of the file.
absl::Status expand_zero_clusters(Image* image,
                                  const std::vector<ListedTable>& tables,
                                  const AmendProgress& progress);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_ZERO_EXPANSION_H_

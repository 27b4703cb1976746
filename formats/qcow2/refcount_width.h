// Gives an image refcounts of another width.
//
// Thread safety: one thread, with the image to itself and nothing dirty in it.
#ifndef SPINDLE_FORMATS_QCOW2_REFCOUNT_WIDTH_H_
#define SPINDLE_FORMATS_QCOW2_REFCOUNT_WIDTH_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/amend_progress.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

// OK if every refcount fits the width 2^`refcount_order`.
// Errors: as below.
absl::Status check_refcounts_fit(Image* image, const Header& header,
                                 uint32_t refcount_order,
                                 const AmendProgress& progress);

// Builds the refcount structures anew with the width 2^`refcount_order` beside
// the old ones, which count them, makes them durable, and switches the header
// (`header` is the image's).  Returns the clusters of the old structures: to be
// freed once the image has been loaded anew.  Until the switch the image is as
// it was; after a power cut it has leaks at worst.
// Errors: kInvalidArgument if a count does not fit, kResourceExhausted if the
// table would be too large, kCancelled, those of the file.
absl::StatusOr<std::vector<HostClusters>> change_refcount_width(
    Image* image, const Header& header, uint32_t refcount_order,
    const AmendProgress& progress);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_REFCOUNT_WIDTH_H_

// Inflating a compressed cluster.
//
// qcow2 specification, "Compressed Clusters Descriptor" and "Compression type".
//
// Thread safety: a pure function.
#ifndef SPINDLE_FORMATS_CLUSTER_INFLATE_H_
#define SPINDLE_FORMATS_CLUSTER_INFLATE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "formats/cluster/compression_type.h"

namespace spindle {

// Inflates `compressed` into exactly `cluster`, which bounds the output and is
// all the memory that grows with it; what follows the end of the stream is
// ignored, as a descriptor may count sectors.
// Errors: kDataLoss if the stream is damaged, or does not end exactly there.
absl::Status inflate_cluster(CompressionType type,
                             absl::Span<const uint8_t> compressed,
                             absl::Span<uint8_t> cluster);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_INFLATE_H_

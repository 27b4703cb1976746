// Compressing one cluster, with the parameters that QEMU uses.
//
// qcow2 specification, "Compression type".  Deflate's window is 4 KiB, as old
// readers have no more.
//
// Thread safety: a pure function.
#ifndef SPINDLE_FORMATS_CLUSTER_COMPRESSOR_H_
#define SPINDLE_FORMATS_CLUSTER_COMPRESSOR_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "formats/cluster/compression_type.h"

namespace spindle {

// Compresses `cluster` into the front of `compressed` and returns how many
// bytes that are; 0 if they do not fit (deflate wants a byte to be left), which
// is the caller's way to say how short they must be.
// Errors: kResourceExhausted without memory, kInternal.
absl::StatusOr<size_t> compress_cluster(CompressionType type,
                                        absl::Span<const uint8_t> cluster,
                                        absl::Span<uint8_t> compressed);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_COMPRESSOR_H_

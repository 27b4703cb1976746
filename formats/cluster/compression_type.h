// How a cluster is compressed.
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_CLUSTER_COMPRESSION_TYPE_H_
#define SPINDLE_FORMATS_CLUSTER_COMPRESSION_TYPE_H_

#include <cstdint>

namespace spindle {

// The numbers are those of a qcow2's header ("Compression type").
enum class CompressionType : uint8_t {
  kZlib = 0,  // raw deflate, without zlib's own header: qcow, and qcow2's first
  kZstd = 1,
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_COMPRESSION_TYPE_H_

// The storage protocols "file" (regular files) and "host_device" (block
// devices).
//
// Thread safety: stateless; any thread may call anything.
#ifndef SPINDLE_FORMATS_RAW_PROTOCOLS_H_
#define SPINDLE_FORMATS_RAW_PROTOCOLS_H_

#include "engine/format.h"

namespace spindle {

// Claims every name that no other protocol claims: a file name is a file name.
// Create options: preallocation, nocow, extent_size_hint, as QEMU has them.
const StorageProtocol* file_protocol();

// Claims the names of block devices.
const StorageProtocol* host_device_protocol();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_PROTOCOLS_H_

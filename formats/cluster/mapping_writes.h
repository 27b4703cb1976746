// Writing changed pieces of L2 tables and of the L1 table to the file, as they
// were when a snapshot was taken of them.
//
// Thread safety: pure functions over what they are given.  They block on I/O.
#ifndef SPINDLE_FORMATS_CLUSTER_MAPPING_WRITES_H_
#define SPINDLE_FORMATS_CLUSTER_MAPPING_WRITES_H_

#include <vector>

#include "absl/status/status.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "formats/cluster/l1_table.h"
#include "formats/cluster/table_cache.h"

namespace spindle {

// Those that follow each other in the file go out together.
absl::Status write_table_pieces(ByteChannel* file, Purpose purpose,
                                const std::vector<DirtyPiece>& pieces);

// REQUIRES: `pieces` are of `table`.
absl::Status write_l1_pieces(ByteChannel* file, const L1Table& table,
                             const std::vector<L1Table::Piece>& pieces);

// True if any of them holds an entry that must not reach the disk before what
// it names does.
bool maps_new_clusters(const std::vector<DirtyPiece>& l2_pieces,
                       const std::vector<L1Table::Piece>& l1_pieces);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_MAPPING_WRITES_H_

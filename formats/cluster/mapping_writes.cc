#include "formats/cluster/mapping_writes.h"

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/io_vector.h"

namespace spindle {
namespace {

// Pieces that are written in one vectored transfer at most.
constexpr size_t kMaxPiecesPerWrite = 256;

}  // namespace

absl::Status write_table_pieces(ByteChannel* file, Purpose purpose,
                                const std::vector<DirtyPiece>& pieces) {
  std::vector<iovec> segments;
  for (size_t i = 0; i < pieces.size();) {
    segments.clear();
    const uint64_t begin = pieces[i].host.bytes;
    uint64_t end = begin;
    while (i < pieces.size() && pieces[i].host.bytes == end &&
           segments.size() < kMaxPiecesPerWrite) {
      const std::vector<uint8_t>& bytes = pieces[i].bytes;
      segments.push_back({const_cast<uint8_t*>(bytes.data()), bytes.size()});
      end += bytes.size();
      ++i;
    }
    absl::Status status = file->write(purpose, IoVector(segments), begin);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status write_l1_pieces(ByteChannel* file, const L1Table& table,
                             const std::vector<L1Table::Piece>& pieces) {
  for (const L1Table::Piece& piece : pieces) {
    absl::Status status =
        file->write(Purpose::kL1Update, piece.bytes.data(), piece.bytes.size(),
                    table.host_of(piece).bytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

bool maps_new_clusters(const std::vector<DirtyPiece>& l2_pieces,
                       const std::vector<L1Table::Piece>& l1_pieces) {
  return !l1_pieces.empty() || std::any_of(l2_pieces.begin(), l2_pieces.end(),
                                           [](const DirtyPiece& piece) {
                                             return piece.has_new_mapping;
                                           });
}

}  // namespace spindle

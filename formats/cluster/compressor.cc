#include "formats/cluster/compressor.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace spindle {
namespace {

// Raw deflate, without zlib's header; 2^12 bytes.
constexpr int kRawDeflateWindowBits = -12;
// zlib's largest: how much memory, not how much it compresses.
constexpr int kDeflateMemoryLevel = 9;

absl::Status no_memory() {
  return absl::ResourceExhaustedError("no memory to compress a cluster");
}

absl::StatusOr<size_t> compress_zlib(absl::Span<const uint8_t> cluster,
                                     absl::Span<uint8_t> compressed) {
  z_stream stream = {};
  if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED,
                   kRawDeflateWindowBits, kDeflateMemoryLevel,
                   Z_DEFAULT_STRATEGY) != Z_OK) {
    return no_memory();
  }
  const absl::Cleanup end = [&] { deflateEnd(&stream); };
  stream.next_in = const_cast<Bytef*>(cluster.data());
  stream.avail_in = static_cast<uInt>(cluster.size());
  stream.next_out = compressed.data();
  stream.avail_out = static_cast<uInt>(compressed.size());
  const int result = deflate(&stream, Z_FINISH);
  if (result == Z_STREAM_END) return compressed.size() - stream.avail_out;
  if (result == Z_OK || result == Z_BUF_ERROR) return 0;
  return absl::InternalError(
      absl::StrCat("zlib does not compress a cluster: result ", result));
}

absl::StatusOr<size_t> compress_zstd(absl::Span<const uint8_t> cluster,
                                     absl::Span<uint8_t> compressed) {
  const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(
      ZSTD_createCCtx(), &ZSTD_freeCCtx);
  if (context == nullptr) return no_memory();
  // The streaming call: the one that does not ask for more room than it needs.
  ZSTD_inBuffer input = {cluster.data(), cluster.size(), 0};
  ZSTD_outBuffer output = {compressed.data(), compressed.size(), 0};
  const size_t left =
      ZSTD_compressStream2(context.get(), &output, &input, ZSTD_e_end);
  if (left == 0) return output.pos;
  if (!ZSTD_isError(left)) return 0;
  return absl::InternalError(absl::StrCat("zstd does not compress a cluster: ",
                                          ZSTD_getErrorName(left)));
}

}  // namespace

absl::StatusOr<size_t> compress_cluster(CompressionType type,
                                        absl::Span<const uint8_t> cluster,
                                        absl::Span<uint8_t> compressed) {
  return type == CompressionType::kZstd ? compress_zstd(cluster, compressed)
                                        : compress_zlib(cluster, compressed);
}

}  // namespace spindle

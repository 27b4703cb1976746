#include "formats/cluster/inflate.h"

#include <zlib.h>
#include <zstd.h>

#include <cstddef>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace spindle {
namespace {

// Raw deflate, without zlib's header.  QEMU compresses with a window of 4 KiB;
// the largest that the method has reads them all.
constexpr int kRawDeflateWindowBits = -15;

absl::Status inflate_zlib(absl::Span<const uint8_t> compressed,
                          absl::Span<uint8_t> cluster) {
  z_stream stream = {};
  if (inflateInit2(&stream, kRawDeflateWindowBits) != Z_OK) {
    return absl::ResourceExhaustedError(
        "no memory to inflate a compressed cluster");
  }
  const absl::Cleanup end = [&] { inflateEnd(&stream); };
  stream.next_in = const_cast<Bytef*>(compressed.data());
  stream.avail_in = static_cast<uInt>(compressed.size());
  stream.next_out = cluster.data();
  stream.avail_out = static_cast<uInt>(cluster.size());
  int result = inflate(&stream, Z_FINISH);
  const uint64_t inflated = cluster.size() - stream.avail_out;
  bool is_too_long = false;
  if (inflated == cluster.size() && result == Z_BUF_ERROR) {
    // The stream does not end with the cluster.  A last block that is not
    // marked as such is harmless; more output than a cluster is damage.
    uint8_t beyond = 0;
    stream.next_out = &beyond;
    stream.avail_out = sizeof(beyond);
    result = inflate(&stream, Z_FINISH);
    is_too_long = stream.avail_out == 0;
  }
  const bool complete = inflated == cluster.size() && !is_too_long &&
                        (result == Z_STREAM_END || result == Z_BUF_ERROR);
  if (complete) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "a compressed cluster of ", compressed.size(), " bytes inflates to ",
      is_too_long ? "more than " : "", inflated, " of ", cluster.size(),
      " bytes (zlib result ", result, ")"));
}

// Frame by frame, until the cluster is full.  A frame that is there whole is
// inflated right into the cluster, so the window that its header asks for is
// never allocated.
absl::Status inflate_zstd(absl::Span<const uint8_t> compressed,
                          absl::Span<uint8_t> cluster) {
  const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(
      ZSTD_createDCtx(), &ZSTD_freeDCtx);
  if (context == nullptr) {
    return absl::ResourceExhaustedError(
        "no memory to inflate a compressed cluster");
  }
  size_t inflated = 0;
  for (size_t at = 0; inflated < cluster.size();) {
    const absl::Span<const uint8_t> rest = compressed.subspan(at);
    size_t result = ZSTD_findFrameCompressedSize(rest.data(), rest.size());
    const size_t frame_bytes = result;
    if (!ZSTD_isError(result)) {
      result = ZSTD_decompressDCtx(context.get(), cluster.data() + inflated,
                                   cluster.size() - inflated, rest.data(),
                                   frame_bytes);
    }
    if (ZSTD_isError(result)) {
      return absl::DataLossError(absl::StrCat(
          "a compressed cluster of ", compressed.size(),
          " bytes does not inflate to ", cluster.size(), " bytes (after ",
          inflated, ": zstd says ", ZSTD_getErrorName(result), ")"));
    }
    inflated += result;
    at += frame_bytes;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status inflate_cluster(CompressionType type,
                             absl::Span<const uint8_t> compressed,
                             absl::Span<uint8_t> cluster) {
  return type == CompressionType::kZstd ? inflate_zstd(compressed, cluster)
                                        : inflate_zlib(compressed, cluster);
}

}  // namespace spindle

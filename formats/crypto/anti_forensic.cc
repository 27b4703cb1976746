#include "formats/crypto/anti_forensic.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/base/macros.h"
#include "absl/status/status.h"
#include "engine/byte_order.h"
#include "formats/crypto/key_derivation.h"

namespace spindle::crypto {
namespace {

// What the last stripe is combined with, from all the others.
class Folder {
 public:
  Folder(Hasher hasher, size_t key_bytes)
      : hasher_(std::move(hasher)),
        piece_bytes_(hasher_.digest_bytes()),
        input_(sizeof(uint32_t) + piece_bytes_),
        output_(piece_bytes_),
        block_(key_bytes) {}

  void add(const uint8_t* stripe) {
    for (size_t i = 0; i < block_.size(); ++i) block_.data()[i] ^= stripe[i];
  }

  // Replaces each piece of the block by the hash of its number and itself; the
  // last one by as much of the hash as fits.
  void diffuse() {
    uint32_t number = 0;
    for (size_t at = 0; at < block_.size(); at += piece_bytes_, ++number) {
      const size_t bytes = std::min(piece_bytes_, block_.size() - at);
      store_big32(input_.data(), number);
      std::memcpy(input_.data() + sizeof(number), block_.data() + at, bytes);
      hasher_.digest(absl::MakeConstSpan(input_.data(), sizeof(number) + bytes),
                     output_.span());
      std::memcpy(block_.data() + at, output_.data(), bytes);
    }
  }

  SecretBytes take() && { return std::move(block_); }

 private:
  Hasher hasher_;
  const size_t piece_bytes_;
  SecretBytes input_;
  SecretBytes output_;
  SecretBytes block_;
};

// Of all stripes, and then `last`.
absl::StatusOr<SecretBytes> fold(Hash hash, const uint8_t* material,
                                 size_t key_bytes, size_t stripes,
                                 const uint8_t* last) {
  absl::StatusOr<Hasher> hasher = Hasher::create(hash);
  if (!hasher.ok()) return hasher.status();
  Folder folder(*std::move(hasher), key_bytes);
  for (size_t i = 0; i + 1 < stripes; ++i) {
    folder.add(material + i * key_bytes);
    folder.diffuse();
  }
  folder.add(last);
  return std::move(folder).take();
}

}  // namespace

absl::StatusOr<SecretBytes> split_key(Hash hash, absl::Span<const uint8_t> key,
                                      size_t stripes) {
  ABSL_ASSERT(stripes > 0 && !key.empty());
  SecretBytes material(key.size() * stripes);
  const size_t last = material.size() - key.size();
  const absl::Status status = fill_random(material.span().first(last));
  if (!status.ok()) return status;
  const absl::StatusOr<SecretBytes> block =
      fold(hash, material.data(), key.size(), stripes, key.data());
  if (!block.ok()) return block.status();
  std::memcpy(material.data() + last, block->data(), key.size());
  return material;
}

absl::StatusOr<SecretBytes> merge_key(Hash hash,
                                      absl::Span<const uint8_t> material,
                                      size_t stripes) {
  ABSL_ASSERT(stripes > 0 && material.size() % stripes == 0);
  const size_t key_bytes = material.size() / stripes;
  return fold(hash, material.data(), key_bytes, stripes,
              material.data() + material.size() - key_bytes);
}

}  // namespace spindle::crypto

// SecretBytes: a run of bytes that nobody else may see, in secret memory: not
// in core dumps, wiped at destruction, never copied unless copy_of() says so.
//
// Thread safety: a value; distinct objects from distinct threads.
#ifndef SPINDLE_ENGINE_SECRET_BYTES_H_
#define SPINDLE_ENGINE_SECRET_BYTES_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace spindle {

// Movable; empty after it was moved from.
class SecretBytes {
 public:
  SecretBytes() = default;
  // Zeroes.  Ends the process, as `new` does, where there is no memory.
  explicit SecretBytes(size_t size_bytes);
  SecretBytes(SecretBytes&& other) noexcept;
  SecretBytes& operator=(SecretBytes&& other) noexcept;
  SecretBytes(const SecretBytes&) = delete;
  SecretBytes& operator=(const SecretBytes&) = delete;
  ~SecretBytes();

  static SecretBytes copy_of(absl::Span<const uint8_t> bytes);
  static SecretBytes copy_of(absl::string_view bytes);

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_bytes_; }
  bool empty() const { return size_bytes_ == 0; }
  absl::Span<uint8_t> span() { return {data_, size_bytes_}; }
  absl::Span<const uint8_t> span() const { return {data_, size_bytes_}; }

  // Forgets, and wipes, what is behind the first `size_bytes`.
  // REQUIRES: size_bytes <= size().
  void shrink(size_t size_bytes);

 private:
  uint8_t* data_ = nullptr;
  size_t size_bytes_ = 0;
};

// Takes as long for equal bytes as for others; their length is no secret.
bool equal_in_constant_time(absl::Span<const uint8_t> a,
                            absl::Span<const uint8_t> b);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_SECRET_BYTES_H_

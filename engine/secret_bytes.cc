#include "engine/secret_bytes.h"

#include <cstring>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/base/macros.h"
#include "engine/secret_memory.h"

namespace spindle {

SecretBytes::SecretBytes(size_t size_bytes) : size_bytes_(size_bytes) {
  if (size_bytes == 0) return;
  data_ = static_cast<uint8_t*>(allocate_secret(size_bytes));
  ABSL_RAW_CHECK(data_ != nullptr, "no memory left for secrets");
}

SecretBytes::SecretBytes(SecretBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

SecretBytes& SecretBytes::operator=(SecretBytes&& other) noexcept {
  if (this == &other) return *this;
  free_secret(data_);
  data_ = std::exchange(other.data_, nullptr);
  size_bytes_ = std::exchange(other.size_bytes_, 0);
  return *this;
}

SecretBytes::~SecretBytes() { free_secret(data_); }

SecretBytes SecretBytes::copy_of(absl::Span<const uint8_t> bytes) {
  SecretBytes copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return copy;
}

SecretBytes SecretBytes::copy_of(absl::string_view bytes) {
  return copy_of(absl::MakeConstSpan(
      reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
}

void SecretBytes::shrink(size_t size_bytes) {
  ABSL_ASSERT(size_bytes <= size_bytes_);
  if (size_bytes < size_bytes_)
    wipe(data_ + size_bytes, size_bytes_ - size_bytes);
  size_bytes_ = size_bytes;
}

bool equal_in_constant_time(absl::Span<const uint8_t> a,
                            absl::Span<const uint8_t> b) {
  if (a.size() != b.size()) return false;
  // Volatile, so that no loop may end early.
  volatile uint8_t difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference = difference | (a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace spindle

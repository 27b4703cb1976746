// Memory for key material: never part of a core dump, locked against swapping
// where the process may lock that much, wiped before it is given back.
//
// It is taken in whole pages from one reserved range of addresses, so it is
// for few and long-lived things: keys, passphrases, cipher states.
//
// Thread safety: any thread may call anything.
#ifndef SPINDLE_ENGINE_SECRET_MEMORY_H_
#define SPINDLE_ENGINE_SECRET_MEMORY_H_

#include <cstddef>

namespace spindle {

// How much there is for the whole process.
inline constexpr size_t kSecretMemoryBytes = size_t{64} << 20;

// Zeroed.  Null if there is no room.  REQUIRES: size_bytes > 0.
void* allocate_secret(size_t size_bytes);
// Wipes it first.  `memory` may be null.
void free_secret(void* memory);
// True if `memory` points into what allocate_secret() gives out.
bool is_secret(const void* memory);
// The bytes behind `memory`, at least as many as were asked for.
// REQUIRES: `memory` came from allocate_secret().
size_t secret_size_bytes(const void* memory);

// Overwrites with zeroes; the compiler does not leave it out.
void wipe(void* memory, size_t size_bytes);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_SECRET_MEMORY_H_

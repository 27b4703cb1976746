#include "engine/secret_bytes.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "engine/secret_memory.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

// The kernel's flags ("rd wr mr dd ...") of the mapping that `address` is in.
std::string flags_of(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  std::string line;
  bool inside = false;
  while (std::getline(smaps, line)) {
    uintptr_t first = 0;
    uintptr_t end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &end) == 2)
      inside = first <= wanted && wanted < end;
    if (inside && absl::StartsWith(line, "VmFlags:"))
      return line.substr(sizeof("VmFlags:") - 1) + " ";
  }
  return {};
}

TEST(SecretBytes, AreLeftOutOfCoreDumps) {
  const SecretBytes secret = SecretBytes::copy_of("a passphrase");
  EXPECT_TRUE(absl::StrContains(flags_of(secret.data()), " dd "))
      << flags_of(secret.data());
  const std::string plain(100, 'x');
  EXPECT_FALSE(absl::StrContains(flags_of(plain.data()), " dd "));
}

// False where a limit forbids it, and under sanitizers, whose mlock() does
// nothing.
bool can_lock_memory() {
  constexpr size_t kPageBytes = 4096;
  void* const page = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  const bool locked =
      mlock(page, kPageBytes) == 0 && absl::StrContains(flags_of(page), " lo ");
  munmap(page, kPageBytes);
  return locked;
}

TEST(SecretBytes, AreLockedWhereTheProcessMay) {
  if (!can_lock_memory()) GTEST_SKIP() << "mlock() does nothing here";
  const SecretBytes secret(100);
  EXPECT_TRUE(absl::StrContains(flags_of(secret.data()), " lo "))
      << flags_of(secret.data());
}

TEST(SecretBytes, AreWipedAtTheEnd) {
  const uint8_t* memory = nullptr;
  {
    const SecretBytes secret = SecretBytes::copy_of("a passphrase");
    memory = secret.data();
    EXPECT_EQ(memory[0], 'a');
  }
  // The range of addresses outlives what was in it.
  for (size_t i = 0; i < sizeof("a passphrase"); ++i) EXPECT_EQ(memory[i], 0);
}

TEST(SecretBytes, AssignmentWipesWhatWasThere) {
  SecretBytes secret = SecretBytes::copy_of("old");
  const uint8_t* const old = secret.data();
  secret = SecretBytes::copy_of("new");
  EXPECT_EQ(old[0], 0);
  EXPECT_EQ(secret.data()[0], 'n');
}

TEST(SecretBytes, MovesWithoutACopy) {
  SecretBytes first = SecretBytes::copy_of("moved");
  const uint8_t* const memory = first.data();
  const SecretBytes second = std::move(first);
  EXPECT_EQ(second.data(), memory);
  EXPECT_EQ(second.size(), 5U);
}

TEST(SecretBytes, ShrinkWipesTheRest) {
  SecretBytes secret = SecretBytes::copy_of("abcdef");
  secret.shrink(2);
  EXPECT_EQ(secret.size(), 2U);
  EXPECT_EQ(secret.data()[1], 'b');
  EXPECT_EQ(secret.data()[2], 0);
}

TEST(SecretBytes, EmptyNeedsNoMemory) {
  const SecretBytes none = SecretBytes::copy_of("");
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_TRUE(none.empty());
}

TEST(SecretBytes, ConstantTimeComparison) {
  const uint8_t a[] = {1, 2, 3};
  const uint8_t same[] = {1, 2, 3};
  const uint8_t last[] = {1, 2, 4};
  const uint8_t first[] = {0, 2, 3};
  EXPECT_TRUE(equal_in_constant_time(a, same));
  EXPECT_FALSE(equal_in_constant_time(a, last));
  EXPECT_FALSE(equal_in_constant_time(a, first));
  EXPECT_FALSE(equal_in_constant_time(a, absl::MakeConstSpan(a, 2)));
  EXPECT_TRUE(equal_in_constant_time({}, {}));
}

TEST(SecretMemory, RunsOfPagesDoNotOverlapAndAreUsedAgain) {
  void* const one = allocate_secret(1);
  void* const big = allocate_secret(20000);
  void* const two = allocate_secret(1);
  ASSERT_NE(big, nullptr);
  EXPECT_GE(secret_size_bytes(big), 20000U);
  std::memset(big, 0xff, secret_size_bytes(big));
  EXPECT_EQ(*static_cast<uint8_t*>(one), 0);
  EXPECT_EQ(*static_cast<uint8_t*>(two), 0);
  EXPECT_TRUE(is_secret(big));
  EXPECT_FALSE(is_secret(&big));
  free_secret(big);
  void* const again = allocate_secret(20000);
  EXPECT_EQ(again, big);
  EXPECT_EQ(*static_cast<uint8_t*>(again), 0);
  free_secret(again);
  free_secret(one);
  free_secret(two);
}

TEST(SecretMemory, HasALimit) {
  EXPECT_EQ(allocate_secret(kSecretMemoryBytes + 1), nullptr);
}

}  // namespace
}  // namespace spindle

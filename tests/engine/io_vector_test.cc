#include "engine/io_vector.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace {
std::atomic<uint64_t> allocation_count{0};
}  // namespace

// Not inlined: GCC would compare malloc with delete.
[[gnu::noinline]] void* operator new(size_t bytes) {
  allocation_count.fetch_add(1);
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  std::abort();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace spindle {
namespace {

// A list of segments in one buffer, each followed by a gap, and the flat list
// of the addresses that it names: the model.
class Scattered {
 public:
  explicit Scattered(const std::vector<size_t>& lengths) {
    size_t total = 0;
    for (size_t length : lengths) total += length + 1;
    memory_.resize(total);
    size_t at = 0;
    for (size_t length : lengths) {
      segments_.push_back(iovec{memory_.data() + at, length});
      for (size_t i = 0; i < length; ++i) flat_.push_back(&memory_[at + i]);
      at += length + 1;
    }
  }

  IoVector vector() const { return IoVector(segments_); }
  const std::vector<uint8_t*>& flat() const { return flat_; }

 private:
  std::vector<uint8_t> memory_;
  std::vector<iovec> segments_;
  std::vector<uint8_t*> flat_;
};

std::vector<uint8_t*> addresses_of(const IoVector& vector) {
  std::vector<uint8_t*> result;
  for (size_t i = 0; i < vector.segment_count(); ++i) {
    const iovec segment = vector.segment(i);
    EXPECT_GT(segment.iov_len, 0u);
    for (size_t k = 0; k < segment.iov_len; ++k) {
      result.push_back(static_cast<uint8_t*>(segment.iov_base) + k);
    }
  }
  EXPECT_EQ(result.size(), vector.length_bytes());
  return result;
}

std::vector<uint8_t*> part_of(const std::vector<uint8_t*>& flat, size_t offset,
                              size_t length) {
  return {flat.begin() + offset, flat.begin() + offset + length};
}

// Calls check(slice, flat) for every slice of every slice.
template <typename Check>
void for_each_slice(const Scattered& scattered, size_t step, Check check) {
  const IoVector vector = scattered.vector();
  const size_t total = vector.length_bytes();
  for (size_t offset = 0; offset <= total; offset += step) {
    for (size_t length = 0; offset + length <= total; length += step) {
      const IoVector slice = vector.slice(offset, length);
      const std::vector<uint8_t*> flat =
          part_of(scattered.flat(), offset, length);
      check(slice, flat);
      for (size_t inner = 0; inner <= length; inner += step) {
        for (size_t n = 0; inner + n <= length; n += step) {
          check(slice.slice(inner, n), part_of(flat, inner, n));
        }
      }
    }
  }
}

// Every list of up to four segments of up to two bytes, and long lists that do
// not fit inline.
std::vector<std::vector<size_t>> small_space() {
  std::vector<std::vector<size_t>> lists;
  for (int count = 0; count <= 4; ++count) {
    int combinations = 1;
    for (int i = 0; i < count; ++i) combinations *= 3;
    for (int code = 0; code < combinations; ++code) {
      std::vector<size_t> lengths;
      for (int i = 0, rest = code; i < count; ++i, rest /= 3) {
        lengths.push_back(rest % 3);
      }
      lists.push_back(lengths);
    }
  }
  for (size_t count : {16, 17, 18, 23}) {
    lists.emplace_back(count, 1);
    std::vector<size_t> mixed;
    for (size_t i = 0; i < count; ++i) mixed.push_back(i % 3);
    lists.push_back(mixed);
  }
  return lists;
}

TEST(IoVector, EverySliceNamesTheBytesOfTheFlatModel) {
  for (const std::vector<size_t>& lengths : small_space()) {
    const Scattered scattered(lengths);
    EXPECT_EQ(addresses_of(scattered.vector()), scattered.flat());
    for_each_slice(scattered, 1, [](const IoVector& slice, const auto& flat) {
      ASSERT_EQ(slice.length_bytes(), flat.size());
      ASSERT_EQ(addresses_of(slice), flat);
    });
  }
}

TEST(IoVector, SlicesOfALongListThatStayLong) {
  const Scattered scattered(std::vector<size_t>(60, 3));
  for_each_slice(scattered, 7, [](const IoVector& slice, const auto& flat) {
    ASSERT_EQ(addresses_of(slice), flat);
  });
}

TEST(IoVector, ExportsFromEveryOffset) {
  for (const auto& lengths :
       {std::vector<size_t>{2, 1, 3}, std::vector<size_t>(20, 2)}) {
    const Scattered scattered(lengths);
    // Enter the first segment in its middle.
    const IoVector vector =
        scattered.vector().slice(1, scattered.flat().size() - 2);
    const auto flat = part_of(scattered.flat(), 1, vector.length_bytes());
    for (uint64_t offset = 0; offset <= vector.length_bytes(); ++offset) {
      for (uint64_t max = 0; max <= vector.length_bytes() + 1; ++max) {
        for (size_t room : {1, 2, 30}) {
          std::vector<iovec> out(room);
          const size_t count =
              vector.export_segments(offset, max, absl::MakeSpan(out));
          ASSERT_LE(count, room);
          const IoVector got(absl::MakeConstSpan(out.data(), count));
          const uint64_t want = std::min(max, vector.length_bytes() - offset);
          if (room == 30) {
            ASSERT_EQ(got.length_bytes(), want);
          }
          ASSERT_LE(got.length_bytes(), want);
          ASSERT_EQ(addresses_of(got),
                    part_of(flat, offset, got.length_bytes()));
          if (want > 0) {
            ASSERT_GT(count, 0u);
          }
        }
      }
    }
  }
}

TEST(IoVector, ConcatenatesAndAppends) {
  for (size_t head_count : {0, 3, 10, 20}) {
    for (size_t tail_count : {0, 3, 10, 20}) {
      const Scattered head(std::vector<size_t>(head_count, 2));
      const Scattered tail(std::vector<size_t>(tail_count, 3));
      std::vector<uint8_t*> flat = head.flat();
      flat.insert(flat.end(), tail.flat().begin(), tail.flat().end());
      EXPECT_EQ(
          addresses_of(IoVector::concatenate(head.vector(), tail.vector())),
          flat);
      IoVector vector = head.vector();
      vector.append(tail.vector());
      EXPECT_EQ(addresses_of(vector), flat);
    }
  }
}

TEST(IoVector, AppendsItself) {
  const Scattered scattered(std::vector<size_t>(9, 1));
  IoVector vector = scattered.vector();
  vector.append(vector);
  std::vector<uint8_t*> flat = scattered.flat();
  flat.insert(flat.end(), scattered.flat().begin(), scattered.flat().end());
  EXPECT_EQ(addresses_of(vector), flat);
}

TEST(IoVector, CopiesAndMovesShortAndLongOnes) {
  for (size_t count : {1, 16, 17, 40}) {
    const Scattered scattered(std::vector<size_t>(count, 2));
    IoVector original = scattered.vector();
    IoVector copy = original;
    EXPECT_EQ(addresses_of(copy), scattered.flat());
    IoVector moved = std::move(original);
    EXPECT_EQ(addresses_of(moved), scattered.flat());
    copy = IoVector();
    EXPECT_TRUE(copy.empty());
    copy = moved;
    const IoVector& self = copy;
    copy = self;
    EXPECT_EQ(addresses_of(copy), scattered.flat());
    moved = std::move(copy);
    EXPECT_EQ(addresses_of(moved), scattered.flat());
  }
}

TEST(IoVector, ASliceOutlivesTheListThatItSharesWith) {
  const Scattered scattered(std::vector<size_t>(40, 2));
  IoVector slice;
  {
    const IoVector vector = scattered.vector();
    slice = vector.slice(1, 70);
  }
  EXPECT_EQ(addresses_of(slice), part_of(scattered.flat(), 1, 70));
}

TEST(IoVector, CopiesToAndFromLinearMemory) {
  for (size_t count : {5, 20}) {
    const Scattered scattered(std::vector<size_t>(count, 3));
    const IoVector vector = scattered.vector();
    const size_t total = vector.length_bytes();
    for (size_t offset = 0; offset <= total; ++offset) {
      for (size_t length = 0; offset + length <= total; ++length) {
        vector.fill(0);
        std::string linear(length, '\0');
        for (size_t i = 0; i < length; ++i) linear[i] = static_cast<char>(i);
        vector.copy_from(offset, linear.data(), length);
        for (size_t i = 0; i < total; ++i) {
          const bool inside = i >= offset && i < offset + length;
          ASSERT_EQ(*scattered.flat()[i], inside ? i - offset : 0);
        }
        std::string back(length, 'x');
        vector.copy_to(offset, back.data(), length);
        ASSERT_EQ(back, linear);
      }
    }
  }
}

TEST(IoVector, FillsOnlyWhatIsAsked) {
  const Scattered scattered({3, 1, 4});
  scattered.vector().fill(1);
  scattered.vector().fill(2, 3, 9);
  std::string got;
  for (uint8_t* byte : scattered.flat()) got += static_cast<char>('0' + *byte);
  EXPECT_EQ(got, "11999111");
}

TEST(IoVector, FindsTheOneByteThatIsNotZero) {
  for (const auto& lengths :
       {std::vector<size_t>{40}, std::vector<size_t>{1, 15, 16, 17, 33}}) {
    const Scattered scattered(lengths);
    EXPECT_TRUE(scattered.vector().is_zero());
    for (uint8_t* byte : scattered.flat()) {
      *byte = 1;
      EXPECT_FALSE(scattered.vector().is_zero());
      *byte = 0;
    }
  }
  EXPECT_TRUE(IoVector().is_zero());
}

TEST(IoVector, AlignmentIsOfAddressesAndLengths) {
  alignas(512) char memory[4096];
  EXPECT_TRUE(IoVector(memory, 1024).is_aligned(512));
  EXPECT_FALSE(IoVector(memory, 1000).is_aligned(512));
  EXPECT_FALSE(IoVector(memory + 8, 512).is_aligned(512));
  EXPECT_TRUE(IoVector(memory + 8, 512).is_aligned(8));
  const IoVector two{{memory, 512}, {memory + 1024, 512}};
  EXPECT_TRUE(two.is_aligned(512));
  EXPECT_FALSE(two.slice(0, 600).is_aligned(512));
}

TEST(IoVector, ShortListsNeverAllocate) {
  const Scattered scattered(std::vector<size_t>(16, 4));
  const Scattered longer(std::vector<size_t>(40, 4));
  const IoVector shared = longer.vector();
  std::vector<iovec> segments(16);
  scattered.vector().export_segments(0, 64, absl::MakeSpan(segments));
  const uint64_t before = allocation_count.load();
  {
    IoVector vector(segments);
    IoVector copy = vector;
    IoVector slice = copy.slice(3, 50);
    IoVector moved = std::move(copy);
    IoVector joined =
        IoVector::concatenate(slice.slice(0, 20), moved.slice(10, 10));
    joined.append(IoVector(segments[0].iov_base, 2));
    // Slices of a long list share it, or fit inline.
    IoVector of_shared = shared.slice(5, 100);
    IoVector short_of_shared = of_shared.slice(3, 20);
    EXPECT_EQ(joined.length_bytes() + short_of_shared.length_bytes(), 52u);
  }
  EXPECT_EQ(allocation_count.load(), before);
}

}  // namespace
}  // namespace spindle

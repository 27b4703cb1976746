// What it costs to carry scattered memory about: building, slicing, copying.

#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "engine/io_vector.h"

namespace spindle {
namespace {

// Segments of 4 KiB; the argument says how many.
class Memory {
 public:
  explicit Memory(size_t segments) : bytes_(segments * 4096) {
    for (size_t i = 0; i < segments; ++i)
      list_.push_back({bytes_.data() + i * 4096, 4096});
  }
  const std::vector<iovec>& list() const { return list_; }
  IoVector vector() const { return IoVector(list_); }

 private:
  std::vector<uint8_t> bytes_;
  std::vector<iovec> list_;
};

void build(benchmark::State& state) {
  const Memory memory(static_cast<size_t>(state.range(0)));
  for (auto _ : state) {
    IoVector vector(memory.list());
    benchmark::DoNotOptimize(vector);
  }
}

void copy_view(benchmark::State& state) {
  const Memory memory(static_cast<size_t>(state.range(0)));
  const IoVector vector = memory.vector();
  for (auto _ : state) {
    IoVector copy(vector);
    benchmark::DoNotOptimize(copy);
  }
}

void slice(benchmark::State& state) {
  const Memory memory(static_cast<size_t>(state.range(0)));
  const IoVector vector = memory.vector();
  for (auto _ : state) {
    IoVector part = vector.slice(512, vector.length_bytes() - 1024);
    benchmark::DoNotOptimize(part);
  }
}

void export_segments(benchmark::State& state) {
  const Memory memory(static_cast<size_t>(state.range(0)));
  const IoVector vector = memory.vector();
  std::vector<iovec> out(memory.list().size());
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        vector.export_segments(0, vector.length_bytes(), absl::MakeSpan(out)));
  }
}

void copy_bytes(benchmark::State& state) {
  const Memory memory(static_cast<size_t>(state.range(0)));
  const IoVector vector = memory.vector();
  std::vector<uint8_t> linear(vector.length_bytes());
  for (auto _ : state) vector.copy_to(0, linear.data(), linear.size());
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(linear.size()));
}

void zero_test(benchmark::State& state) {
  const Memory memory(static_cast<size_t>(state.range(0)));
  const IoVector vector = memory.vector();
  for (auto _ : state) benchmark::DoNotOptimize(vector.is_zero());
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(vector.length_bytes()));
}

BENCHMARK(build)->Arg(1)->Arg(16)->Arg(17)->Arg(128);
BENCHMARK(copy_view)->Arg(1)->Arg(16)->Arg(17)->Arg(128);
BENCHMARK(slice)->Arg(1)->Arg(16)->Arg(17)->Arg(128);
BENCHMARK(export_segments)->Arg(1)->Arg(16)->Arg(128);
BENCHMARK(copy_bytes)->Arg(1)->Arg(16);
BENCHMARK(zero_test)->Arg(1)->Arg(16);

}  // namespace
}  // namespace spindle

BENCHMARK_MAIN();

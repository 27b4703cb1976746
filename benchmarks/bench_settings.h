// What a run of the ratios is asked for, and where its rows go.
//
// Thread safety: values; one thread measures.
#ifndef SPINDLE_BENCHMARKS_BENCH_SETTINGS_H_
#define SPINDLE_BENCHMARKS_BENCH_SETTINGS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "benchmarks/ratio_table.h"
#include "threadpool/executor.h"

namespace spindle::benchmarks {

struct BenchSettings {
  bool smoke = false;
  size_t rounds = 5;
  uint64_t image_mib = 1024;
  size_t width = 16;
  int poll_us = 50;
  std::string tmpfs = "/dev/shm";
  std::string ext4 = ".";
  std::string spindle_img;  // the program; empty: its rows are left out
  std::string only;         // a part of the group's name; empty: all groups

  uint64_t image_bytes() const { return image_mib << 20; }
  const std::string& directory(bool on_tmpfs) const {
    return on_tmpfs ? tmpfs : ext4;
  }
  bool wants(const std::string& group) const {
    return group.find(only) != std::string::npos;
  }
  // Of a smoke run no more than a few.
  uint64_t requests(uint64_t count) const {
    return smoke && count > 200 ? 200 : count;
  }
};

struct BenchContext {
  const BenchSettings* settings;
  Executor* executor;
  RatioTable* table;
};

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_BENCH_SETTINGS_H_

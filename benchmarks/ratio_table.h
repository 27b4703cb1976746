// RatioTable: contestants that are measured in turns, and the table of what
// came out.
//
// Contestants take turns within each round, so that a change of the machine's
// mood hits all of them; each one's result is its median over the rounds.
//
// Thread safety: none; one thread measures.
#ifndef SPINDLE_BENCHMARKS_RATIO_TABLE_H_
#define SPINDLE_BENCHMARKS_RATIO_TABLE_H_

#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace spindle::benchmarks {

// Operations per second.
using Measurement = std::function<absl::StatusOr<double>()>;

struct Contestant {
  std::string name;
  Measurement measure;
  // It may be unable to run here (an engine that the kernel lacks); it then
  // drops out, with a note.
  bool may_fail = false;
};

// Medians by name; contestants that dropped out are missing.
absl::StatusOr<std::map<std::string, double>> measure_in_turns(
    const std::vector<Contestant>& contestants, size_t rounds);

struct RatioRow {
  std::string name;
  double ours = 0;
  double other = 0;
  std::string other_name;
  std::optional<double> target;  // none: printed only
  // What `ours` and `other` are printed in: thousands a second, or as they are.
  double unit = 1000;
  double ratio() const { return ours / other; }
  bool passes() const { return !target || ratio() >= *target; }
};

class RatioTable {
 public:
  // Adds the row and prints it at once on stderr, as progress.
  void add(RatioRow row);
  void print() const;
  bool all_pass() const;
  bool empty() const { return rows_.empty(); }

 private:
  std::vector<RatioRow> rows_;
};

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_RATIO_TABLE_H_

#include "benchmarks/ratio_table.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace spindle::benchmarks {
namespace {

double median(std::vector<double> values) {
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(),
                   values.begin() + static_cast<ptrdiff_t>(middle),
                   values.end());
  return values[middle];
}

std::string format_row(const RatioRow& row) {
  const int digits = row.unit == 1 ? 2 : 1;
  return absl::StrFormat("%-48s %10.*f %10.*f  %-18s %6.2f  %s", row.name,
                         digits, row.ours / row.unit, digits,
                         row.other / row.unit, row.other_name, row.ratio(),
                         row.target
                             ? absl::StrFormat("%5.2f  %s", *row.target,
                                               row.passes() ? "pass" : "FAIL")
                             : std::string("    -  printed only"));
}

}  // namespace

absl::StatusOr<std::map<std::string, double>> measure_in_turns(
    const std::vector<Contestant>& contestants, size_t rounds) {
  std::map<std::string, std::vector<double>> results;
  std::vector<bool> dropped(contestants.size());
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      if (dropped[i]) continue;
      const auto result = contestants[i].measure();
      if (result.ok()) {
        results[contestants[i].name].push_back(*result);
        continue;
      }
      if (!contestants[i].may_fail) return result.status();
      std::fprintf(stderr, "note: %s drops out: %s\n",
                   contestants[i].name.c_str(),
                   std::string(result.status().message()).c_str());
      dropped[i] = true;
      results.erase(contestants[i].name);
    }
  }
  std::map<std::string, double> medians;
  for (auto& [name, values] : results) {
    std::string text;
    for (double value : values)
      absl::StrAppend(&text, absl::StrFormat(" %.1f", value / 1000));
    medians[name] = median(std::move(values));
    std::fprintf(stderr, "  %-24s median %8.1f  of%s (thousand/s)\n",
                 name.c_str(), medians[name] / 1000, text.c_str());
  }
  return medians;
}

void RatioTable::add(RatioRow row) {
  std::fprintf(stderr, "%s\n", format_row(row).c_str());
  rows_.push_back(std::move(row));
}

void RatioTable::print() const {
  std::printf("%-48s %10s %10s  %-18s %6s  %5s\n",
              "4 KiB requests, thousand operations a second", "ours", "other",
              "which", "ratio", "target");
  for (const RatioRow& row : rows_)
    std::printf("%s\n", format_row(row).c_str());
}

bool RatioTable::all_pass() const {
  return std::all_of(rows_.begin(), rows_.end(),
                     [](const RatioRow& row) { return row.passes(); });
}

}  // namespace spindle::benchmarks

#include "tools/progress.h"

#include <csignal>
#include <cstdio>

namespace spindle {
namespace {

constexpr double kAll = 100;
constexpr double kStep = 1;

// Set by the signal, taken by whoever reports next.
volatile std::sig_atomic_t asked = 0;

void ask(int) { asked = 1; }

}  // namespace

Progress::Progress(bool shown) : shown_(shown) {
  if (shown_) {
    std::printf("    (%3.2f/100%%)\r", 0.0);
    std::fflush(stdout);
  } else {
    struct sigaction action = {};
    action.sa_handler = ask;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGUSR1, &action, nullptr);
  }
}

Progress::~Progress() {
  if (!shown_) std::signal(SIGUSR1, SIG_IGN);
}

void Progress::report(uint64_t done, uint64_t total) {
  const double percent = total == 0 ? kAll
                                    : kAll * static_cast<double>(done) /
                                          static_cast<double>(total);
  absl::MutexLock lock(&mutex_);
  if (percent < percent_) return;
  percent_ = percent;
  if (shown_) {
    if (percent_ > printed_ + kStep || percent_ >= kAll) print_locked(percent_);
  } else if (asked != 0) {
    asked = 0;
    std::fprintf(stderr, "    (%3.2f/100%%)\n", percent_);
  }
}

void Progress::finish() {
  if (shown_) {
    absl::MutexLock lock(&mutex_);
    print_locked(kAll);
  }
  end_line();
}

void Progress::end_line() {
  absl::MutexLock lock(&mutex_);
  if (!shown_) return;
  std::printf("\n");
  std::fflush(stdout);
}

void Progress::print_locked(double percent) {
  printed_ = percent;
  std::printf("    (%3.2f/100%%)\r", percent);
  std::fflush(stdout);
}

}  // namespace spindle

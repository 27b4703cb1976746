#include "tools/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/time/clock.h"

namespace spindle {
namespace {

constexpr int kWidth = 40;
constexpr absl::Duration kRedrawInterval = absl::Milliseconds(50);

}  // namespace

ProgressBar::ProgressBar() : terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() { erase(); }

void ProgressBar::update(double fraction, const std::string& label) {
  if (!terminal_) return;
  const absl::Time now = absl::Now();
  if (now - last_draw_ < kRedrawInterval) return;
  last_draw_ = now;
  drawn_ = true;
  const double clamped = std::clamp(fraction, 0.0, 1.0);
  const std::string full(static_cast<size_t>(clamped * kWidth), '#');
  std::fprintf(stderr, "\r\033[K[%-*s] %3.0f%% %s", kWidth, full.c_str(),
               clamped * 100, label.c_str());
  std::fflush(stderr);
}

void ProgressBar::erase() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace spindle

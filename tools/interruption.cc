#include "tools/interruption.h"

#include <csignal>

namespace spindle {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};

std::atomic<bool> is_interrupted{false};
volatile std::sig_atomic_t received = 0;

void note(int signal) {
  received = signal;
  is_interrupted.store(true, std::memory_order_relaxed);
}

}  // namespace

Interruption::Interruption() {
  struct sigaction action = {};
  action.sa_handler = note;
  // Calls go on; a second signal of the same kind ends the process at once.
  action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
  for (const int signal : kSignals) ::sigaction(signal, &action, nullptr);
}

Interruption::~Interruption() {
  for (const int signal : kSignals) std::signal(signal, SIG_DFL);
  if (received != 0) std::raise(received);
}

const std::atomic<bool>* Interruption::flag() { return &is_interrupted; }

}  // namespace spindle

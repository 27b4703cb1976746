#include "threadpool/parallelism_cap.h"

#include "oneapi/tbb/global_control.h"

namespace spindle {

class ParallelismCap::Control {
 public:
  explicit Control(size_t threads)
      : control_(tbb::global_control::max_allowed_parallelism, threads) {}

 private:
  const tbb::global_control control_;
};

ParallelismCap::ParallelismCap(size_t threads)
    : control_(std::make_unique<Control>(threads)) {}
ParallelismCap::~ParallelismCap() = default;

}  // namespace spindle

// ParallelismCap: limits the threads of this process as an embedder does that
// uses oneTBB for itself.  For tests.
//
// Thread safety: any thread may create and destroy one.
#ifndef SPINDLE_THREADPOOL_PARALLELISM_CAP_H_
#define SPINDLE_THREADPOOL_PARALLELISM_CAP_H_

#include <cstddef>
#include <memory>

namespace spindle {

class ParallelismCap {
 public:
  explicit ParallelismCap(size_t threads);
  ~ParallelismCap();
  ParallelismCap(const ParallelismCap&) = delete;
  ParallelismCap& operator=(const ParallelismCap&) = delete;

 private:
  class Control;
  const std::unique_ptr<Control> control_;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_PARALLELISM_CAP_H_

// A qemu-io that has an image open and keeps it open.
//
// Thread safety: none.
#ifndef SPINDLE_TESTS_FORMATS_RAW_QEMU_IO_PROCESS_H_
#define SPINDLE_TESTS_FORMATS_RAW_QEMU_IO_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace spindle::testing {

class QemuIoProcess {
 public:
  // Starts `qemu-io <arguments>` and waits until it has opened its image, or
  // has given up.
  explicit QemuIoProcess(const std::vector<std::string>& arguments);
  // Has it quit, and waits for that.
  ~QemuIoProcess();
  QemuIoProcess(const QemuIoProcess&) = delete;
  QemuIoProcess& operator=(const QemuIoProcess&) = delete;

  bool has_opened() const { return has_opened_; }
  // What it printed while it opened.
  const std::string& output() const { return output_; }

 private:
  pid_t pid_ = -1;
  int to_child_ = -1;
  int from_child_ = -1;
  bool has_opened_ = false;
  std::string output_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_RAW_QEMU_IO_PROCESS_H_

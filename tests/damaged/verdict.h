// What an implementation makes of an image that may be damaged: QEMU's tools,
// run as programs, and our own drivers, in this process.
//
// Thread safety: values; asking for them, one thread per image.
#ifndef SPINDLE_TESTS_DAMAGED_VERDICT_H_
#define SPINDLE_TESTS_DAMAGED_VERDICT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/damaged/base_image.h"
#include "tests/formats/qcow2/check_report.h"

namespace spindle::testing {

inline constexpr char kRefused[] = "refused";
// A damaged image can keep QEMU's tools busy for ever: they are killed after so
// long.
inline constexpr int kToolSeconds = 5;
inline constexpr char kEndless[] = "endless";
// By a signal, that is.
inline constexpr char kCrashed[] = "crashed";

// What reading the whole disk finds.
struct Contents {
  // It could be opened and its length is known.
  bool opened = false;
  // What could not be read is zero here.
  Bytes bytes;
  // The sectors that could not be read.
  std::vector<uint64_t> bad_sectors;
  // After the first of them it refused everything.
  bool gave_up = false;
  bool endless = false;
  std::string message;
};

// One per implementation; every call opens the image anew.
class Implementation {
 public:
  virtual ~Implementation() = default;

  // JSON without what depends on the file system, or kRefused.
  virtual std::string info(const std::string& path) = 0;
  virtual Contents read(const std::string& path) = 0;
  // The placement (qemu_tools.h) of everything, kRefused, or "failed".
  virtual std::string map(const std::string& path) = 0;
  // The outcome of some writes, zeroes and discards, or kRefused.
  virtual std::string write(const std::string& path,
                            uint64_t cluster_bytes) = 0;
  // `repair`: "", "leaks" or "all".
  virtual CheckReport check(const std::string& path,
                            const std::string& repair) = 0;
  // Why the last call that said kRefused did so.
  std::string reason;
};

class Qemu final : public Implementation {
 public:
  std::string info(const std::string& path) override;
  Contents read(const std::string& path) override;
  std::string map(const std::string& path) override;
  std::string write(const std::string& path, uint64_t cluster_bytes) override;
  CheckReport check(const std::string& path,
                    const std::string& repair) override;
};

class Spindle final : public Implementation {
 public:
  std::string info(const std::string& path) override;
  Contents read(const std::string& path) override;
  std::string map(const std::string& path) override;
  std::string write(const std::string& path, uint64_t cluster_bytes) override;
  CheckReport check(const std::string& path,
                    const std::string& repair) override;

  // The last write() was refused, all of it or a part, because of damage.
  bool found_damage = false;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DAMAGED_VERDICT_H_

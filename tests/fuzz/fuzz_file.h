// FuzzFile: a small file in memory, for fuzzers: cheap to make, and bounded.
//
// Thread safety: none; a fuzzer has one thread.
#ifndef SPINDLE_TESTS_FUZZ_FUZZ_FILE_H_
#define SPINDLE_TESTS_FUZZ_FUZZ_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"

namespace spindle::testing {

class FuzzFile final : public BlockDriver {
 public:
  // Growing beyond this fails with ENOSPC.
  static constexpr uint64_t kMaxBytes = uint64_t{4} << 20;

  explicit FuzzFile(absl::string_view content, bool read_only = false)
      : bytes_(content.begin(), content.end()), read_only_(read_only) {}

  std::string content() const { return {bytes_.begin(), bytes_.end()}; }

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override { return absl::OkStatus(); }
  absl::string_view format_name() const override { return "fuzz"; }
  std::string filename() const override { return "fuzz"; }
  uint64_t length_bytes() const override { return bytes_.size(); }
  bool read_only() const override { return read_only_; }
  Capabilities capabilities() const override;
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;

 private:
  absl::Status grow_to(uint64_t length_bytes);

  std::vector<uint8_t> bytes_;
  const bool read_only_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FUZZ_FUZZ_FILE_H_

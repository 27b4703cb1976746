// AnnouncingDriver: a raw image over a file that watches accesses (access.h).
//
// Raw images have no driver of their own, and so nobody who would say what the
// accesses are for; where the file wants to know (error injection), this does.
//
// Thread safety: as BlockDriver.
#ifndef SPINDLE_FORMATS_RAW_ANNOUNCING_DRIVER_H_
#define SPINDLE_FORMATS_RAW_ANNOUNCING_DRIVER_H_

#include <memory>

#include "engine/access.h"
#include "engine/filter_driver.h"

namespace spindle {

class AnnouncingDriver final : public FilterDriver {
 public:
  // REQUIRES: file->access_observer() != nullptr.
  explicit AnnouncingDriver(std::shared_ptr<BlockDriver> file);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector&, Sector) override { return 0; }
  uint64_t try_write(const IoVector&, Sector) override { return 0; }
  absl::string_view format_name() const override { return "raw"; }
  Capabilities capabilities() const override;
  // Who is above may announce what it does besides.
  AccessObserver* access_observer() override { return observer_; }
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;

 private:
  AccessObserver* const observer_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_ANNOUNCING_DRIVER_H_

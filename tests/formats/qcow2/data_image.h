// DataImage: an open qcow2 image with an external data file, both in memory,
// with an ObservingDriver before each.
//
// What should not fail (creating, opening) ends the process if it does.
//
// Thread safety: the data path as BlockDriver; everything else one thread.
#ifndef SPINDLE_TESTS_FORMATS_QCOW2_DATA_IMAGE_H_
#define SPINDLE_TESTS_FORMATS_QCOW2_DATA_IMAGE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "tests/formats/qcow2/life_driver.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/observing_driver.h"

namespace spindle::testing {

class DataImage {
 public:
  // `options` besides data_file.
  DataImage(uint64_t size_bytes, OptionMap options);
  ~DataImage();

  BlockDriver& driver() { return *driver_; }
  ObservingDriver& file() { return *observed_file_; }
  ObservingDriver& data() { return *observed_data_; }
  LifeDriver& file_memory() { return *file_; }
  LifeDriver& data_memory() { return *data_; }
  const LifeDriver& file_memory() const { return *file_; }
  const LifeDriver& data_memory() const { return *data_; }

  absl::Status open(bool read_only = false, OptionMap driver_options = {});
  absl::Status close();
  // Another driver over the same files, as if it were in another process.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_again() const;
  // What the embedder answers when the image names its data file.
  OpenContext context() const;
  // The name that the image states.  There is an empty file of that name, for
  // the other implementation.
  const std::string& data_filename() const { return data_filename_; }
  // The request that opened it last.
  const ChildRequest& request() const { return *request_; }
  // What qemu-img check says.
  absl::Status check(Leaks leaks = Leaks::kForbidden) const {
    return check_image_bytes(file_->content(), leaks);
  }

 private:
  const std::string data_filename_;
  const std::shared_ptr<LifeDriver> file_;
  const std::shared_ptr<LifeDriver> data_;
  const std::shared_ptr<ChildRequest> request_;
  std::shared_ptr<ObservingDriver> observed_file_;
  std::shared_ptr<ObservingDriver> observed_data_;
  std::shared_ptr<BlockDriver> driver_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW2_DATA_IMAGE_H_

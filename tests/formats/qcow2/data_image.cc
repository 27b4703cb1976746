#include "tests/formats/qcow2/data_image.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "formats/qcow2/create.h"
#include "formats/qcow2/qcow2_driver.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

void require(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  std::abort();
}

}  // namespace

DataImage::DataImage(uint64_t size_bytes, OptionMap options)
    : data_filename_(temporary_path("data")),
      file_(std::make_shared<LifeDriver>(/*read_only=*/false)),
      data_(std::make_shared<LifeDriver>(/*read_only=*/false)),
      request_(std::make_shared<ChildRequest>()) {
  CreateOptions create;
  create.size_bytes = size_bytes;
  create.options = std::move(options);
  create.options["data_file"] = data_filename_;
  const auto plan = qcow2::plan_create(create);
  require(plan.status(), "plan_create");
  require(qcow2::write_image(*plan, file_), "write_image");
  require(data_->set_length(size_bytes, SetLengthMode::kExact), "set_length");
  require(write_file(data_filename_, {}), "write_file");
  require(open(), "open");
}

DataImage::~DataImage() { ::unlink(data_filename_.c_str()); }

OpenContext DataImage::context() const {
  OpenContext context;
  context.open_child = [data = observed_data_,
                        noted = request_](const ChildRequest& request)
      -> absl::StatusOr<std::shared_ptr<BlockDriver>> {
    *noted = request;
    return data;
  };
  return context;
}

absl::Status DataImage::open(bool read_only, OptionMap driver_options) {
  OpenOptions options;
  options.read_only = read_only;
  options.driver_options = std::move(driver_options);
  file_->exchange_read_only(read_only);
  data_->exchange_read_only(read_only);
  observed_file_ = std::make_shared<ObservingDriver>(file_);
  observed_data_ = std::make_shared<ObservingDriver>(data_);
  auto driver = qcow2::open_qcow2(observed_file_, options, context());
  if (!driver.ok()) return driver.status();
  driver_ = *std::move(driver);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<BlockDriver>> DataImage::open_again() const {
  OpenContext context;
  context.open_child = [data = data_](const ChildRequest&)
      -> absl::StatusOr<std::shared_ptr<BlockDriver>> { return data; };
  return qcow2::open_qcow2(file_, {}, context);
}

absl::Status DataImage::close() {
  absl::Status status = driver_->close();
  driver_.reset();
  file_->take_calls();
  data_->take_calls();
  return status;
}

}  // namespace spindle::testing

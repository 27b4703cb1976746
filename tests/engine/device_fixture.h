// What tests of BlockDevice share: a device over a GatedDriver, and buffers.
#ifndef SPINDLE_TESTS_ENGINE_DEVICE_FIXTURE_H_
#define SPINDLE_TESTS_ENGINE_DEVICE_FIXTURE_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/block_device.h"
#include "gtest/gtest.h"
#include "tests/engine/gated_driver.h"
#include "threadpool/default_executor.h"

namespace spindle::testing {

inline std::unique_ptr<Executor> make_test_executor(size_t width) {
  ExecutorOptions options;
  options.width = width;
  options.name = "test";
  return make_executor(options);
}

struct DeviceFixture {
  explicit DeviceFixture(BlockDeviceOptions options = {}, size_t width = 4,
                         GatedDriver::Options driver_options = {})
      : executor(make_test_executor(width)) {
    if (driver_options.length_bytes == 0) driver_options.length_bytes = 1 << 20;
    driver = std::make_shared<GatedDriver>(driver_options);
    absl::StatusOr<std::unique_ptr<BlockDevice>> made =
        BlockDevice::create(driver, executor.get(), std::move(options));
    EXPECT_TRUE(made.ok()) << made.status();
    device = *std::move(made);
  }
  ~DeviceFixture() { driver->open_gate(); }

  bool has_threads() const { return executor->width() > 0; }
  // Waits for exactly `count` completions, and sorts nothing.
  std::vector<Completion> wait(size_t count) {
    std::vector<Completion> out(count);
    EXPECT_EQ(device->completion_queue().wait(count, absl::InfiniteDuration(),
                                              absl::MakeSpan(out)),
              count);
    return out;
  }

  std::unique_ptr<Executor> executor;
  std::shared_ptr<GatedDriver> driver;
  std::unique_ptr<BlockDevice> device;
};

// Requests that run side by side need memory of their own.
class Buffers {
 public:
  explicit Buffers(size_t count, size_t bytes = 4096)
      : bytes_(bytes), memory_(count * bytes, 'b') {}
  IoVector operator[](size_t i) {
    return IoVector(memory_.data() + i * bytes_, bytes_);
  }

 private:
  const size_t bytes_;
  std::string memory_;
};

struct Buffer {
  explicit Buffer(size_t bytes = 4096, char fill = 'b') : text(bytes, fill) {}
  IoVector vector() { return IoVector(text.data(), text.size()); }
  std::string text;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_ENGINE_DEVICE_FIXTURE_H_

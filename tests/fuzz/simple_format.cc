#include "tests/fuzz/simple_format.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/fuzz_file.h"

namespace spindle::testing {
namespace {

constexpr int kMaxMapSteps = 32;
constexpr uint64_t kMaxReadBytes = uint64_t{16} << 10;

// The byte in each sector that was written.
using Model = std::map<uint64_t, uint8_t>;

class Exercise {
 public:
  Exercise(const SimpleFormat& format, absl::string_view image)
      : format_(format), image_(image) {}
  void run(absl::Span<const uint8_t> program);

 private:
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      const std::shared_ptr<FuzzFile>& file, OpenOptions options = {}) const {
    options.driver_options = format_.driver_options;
    return format_.format->open(file, options, format_.context);
  }
  bool is_sound(absl::string_view image) const;
  void look_without_writing() const;

  const SimpleFormat& format_;
  const absl::string_view image_;
};

absl::StatusOr<std::vector<uint8_t>> read(BlockDriver& driver, uint64_t offset,
                                          uint64_t bytes) {
  std::vector<uint8_t> buffer(bytes, 0x5a);
  absl::Status status = driver.read(IoVector(buffer.data(), buffer.size()),
                                    Sector::from_byte_offset(offset));
  if (!status.ok()) return status;
  return buffer;
}

void look(BlockDriver& driver) {
  const uint64_t end = driver.length_bytes();
  uint64_t offset = 0;
  for (int step = 0; step < kMaxMapSteps && offset < end; ++step) {
    const absl::StatusOr<BlockStatus> status = driver.block_status(
        {offset, end - offset}, BlockStatusScope::kWholeChain);
    if (!status.ok()) break;
    require(status->length > 0 && status->length <= end - offset,
            "a block status has a length, within what was asked for");
    // What a static VDI's file says may end within a sector.
    const uint64_t next =
        std::min(align_up(offset + status->length, kSectorSizeBytes), end);
    const auto content =
        read(driver, offset, std::min(next - offset, kMaxReadBytes));
    if (content.ok() && status->zero && is_sector_aligned(status->length)) {
      require(std::all_of(content->begin(), content->end(),
                          [](uint8_t byte) { return byte == 0; }),
              "what is said to read as zeroes does");
    }
    offset = next;
  }
}

void must_hold(BlockDriver& driver, const Model& model) {
  for (const auto& [offset, value] : model) {
    const auto content = read(driver, offset, kSectorSizeBytes);
    require(content.ok(), "what was written can be read");
    require(content->front() == value && content->back() == value,
            "what was written is read back");
  }
}

// Small numbers are sectors from the start; large ones spread over the disk.
uint64_t offset_of(uint8_t place, uint64_t sectors) {
  const uint64_t sector = place < 128 ? place * uint64_t{7}
                                      : sectors / 128 * (place - uint64_t{127});
  return std::min(sector, sectors - 1) * kSectorSizeBytes;
}

// Whole clusters, compressed, or some sectors.
absl::Status write(BlockDriver& driver, uint8_t operation, ByteRange* range) {
  const uint64_t cluster = driver.limits().optimal_transfer_bytes;
  const bool compresses =
      operation >= 0xc0 &&
      driver.capabilities().has(Capability::kWriteCompressed);
  if (compresses) {
    const uint64_t begin = align_down(range->offset, cluster);
    *range = {begin, std::min(cluster, driver.length_bytes() - begin)};
  }
  std::vector<uint8_t> buffer(range->length, operation);
  const IoVector qiov(buffer.data(), buffer.size());
  const Sector sector = Sector::from_byte_offset(range->offset);
  return compresses ? driver.write_compressed(qiov, sector)
                    : driver.write(qiov, sector);
}

void use(BlockDriver& driver, absl::Span<const uint8_t> program, Model* model) {
  const uint64_t sectors = driver.length_bytes() / kSectorSizeBytes;
  if (sectors == 0) return;
  for (size_t i = 0; i + 1 < program.size(); i += 2) {
    if (program[i] % 4 == 0) {
      driver.flush().IgnoreError();
      continue;
    }
    const uint64_t offset = offset_of(program[i + 1], sectors);
    ByteRange range{
        offset,
        std::min<uint64_t>(1 + program[i] % 8, sectors - offset / 512) * 512};
    const bool written = write(driver, program[i], &range).ok();
    for (uint64_t at = range.offset; at < range.end(); at += kSectorSizeBytes) {
      if (written) {
        (*model)[at] = program[i];
      } else {
        model->erase(at);
      }
    }
  }
}

bool Exercise::is_sound(absl::string_view image) const {
  OpenOptions options;
  options.read_only = options.for_check = true;
  const auto driver =
      open(std::make_shared<FuzzFile>(image, /*read_only=*/true), options);
  if (!driver.ok()) return false;
  const absl::StatusOr<CheckResult> result = (*driver)->check({});
  require(result.ok(), "what opens can be checked");
  return result->corruptions == 0 && result->check_errors == 0;
}

void Exercise::look_without_writing() const {
  OpenOptions options;
  options.read_only = true;
  const auto driver =
      open(std::make_shared<FuzzFile>(image_, /*read_only=*/true), options);
  if (!driver.ok()) return;
  static_cast<void>((*driver)->info());
  look(**driver);
  (*driver)->close().IgnoreError();
}

void Exercise::run(absl::Span<const uint8_t> program) {
  const bool sound = is_sound(image_);
  look_without_writing();
  const auto file = std::make_shared<FuzzFile>(image_);
  const auto driver = open(file);
  if (!driver.ok()) {
    require(file->content() == image_, "an image that is refused is as it was");
    return;
  }
  Model model;
  use(**driver, program, &model);
  if (sound) must_hold(**driver, model);
  look(**driver);
  if (!(*driver)->close().ok()) return;
  const auto again = open(file);
  require(again.ok(), "what was used can be opened again");
  if (!sound) return;
  must_hold(**again, model);
  require(is_sound(file->content()), "what was sound is sound");
}

}  // namespace

void exercise_simple_format(const SimpleFormat& format,
                            absl::Span<const uint8_t> program,
                            absl::string_view image) {
  Exercise(format, image).run(program);
}

}  // namespace spindle::testing

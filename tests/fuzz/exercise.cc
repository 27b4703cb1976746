#include "tests/fuzz/exercise.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/dirty_bitmap.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/secret_bytes.h"
#include "formats/luks/header.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_driver.h"
#include "tests/fuzz/fuzz_file.h"

namespace spindle::testing {
namespace {

// Bounds on what one input may cost.
constexpr int kMaxMapSteps = 64;
constexpr uint64_t kMaxTransferBytes = uint64_t{64} << 10;
constexpr uint64_t kMaxGrowthBytes = uint64_t{1} << 20;
// A check walks what the file holds many times over.
constexpr uint64_t kMaxCheckedBytes = uint64_t{1} << 20;

// What deriving one key may cost here.
constexpr uint32_t kMaxIterations = 2000;

// An encrypted image that would take long to open.
bool is_slow_to_open(absl::string_view image) {
  const absl::Span<const uint8_t> bytes(
      reinterpret_cast<const uint8_t*>(image.data()), image.size());
  const auto header = qcow2::parse_header(bytes, image.size());
  if (!header.ok()) return false;
  const auto area = qcow2::find_luks_header(*header);
  if (!area.ok() || !area->has_value() || (*area)->offset >= image.size())
    return false;
  const auto luks =
      luks::parse_header(bytes.subspan((*area)->offset), (*area)->length);
  if (!luks.ok()) return false;
  return luks->key_iterations > kMaxIterations ||
         std::any_of(luks->slots.begin(), luks->slots.end(),
                     [](const luks::KeySlot& slot) {
                       return slot.iterations > kMaxIterations;
                     });
}

OpenOptions options_for(absl::string_view image, bool read_only) {
  OpenOptions options;
  options.read_only = read_only;
  if (image.size() > qcow2::kCryptMethodOffset + 3 &&
      image[qcow2::kCryptMethodOffset + 3] != 0) {
    options.driver_options["encrypt.key-secret"] = "s";
  }
  return options;
}

// The backing file of whatever names one, and an empty data file.
OpenContext context() {
  OpenContext context;
  context.secrets = fuzz_secrets();
  context.open_child = [](const ChildRequest& request)
      -> absl::StatusOr<std::shared_ptr<BlockDriver>> {
    require(request.filename.size() <= 4096, "a child's name is bounded");
    if (request.role == ChildRole::kDataFile)
      return std::make_shared<FuzzFile>("", request.read_only);
    return std::make_shared<FuzzFile>(std::string(4096, 'B'),
                                      /*read_only=*/true);
  };
  return context;
}

std::optional<CheckResult> check(absl::string_view image) {
  if (image.size() > kMaxCheckedBytes) return std::nullopt;
  OpenOptions options;
  options.read_only = options.for_check = true;
  const auto driver = qcow2::open_qcow2(
      std::make_shared<FuzzFile>(image, /*read_only=*/true), options, {});
  if (!driver.ok()) return std::nullopt;
  absl::StatusOr<CheckResult> result = (*driver)->check({});
  if (!result.ok()) return std::nullopt;
  return *result;
}

bool is_sound(const std::optional<CheckResult>& result) {
  return result.has_value() && result->corruptions == 0 &&
         result->check_errors == 0;
}

void repair(absl::string_view image) {
  if (image.size() > kMaxCheckedBytes) return;
  const auto file = std::make_shared<FuzzFile>(image);
  OpenOptions options;
  options.for_check = true;
  const auto driver = qcow2::open_qcow2(file, options, {});
  if (!driver.ok()) return;
  CheckOptions fix;
  fix.fix_leaks = fix.fix_errors = true;
  const absl::StatusOr<CheckResult> result = (*driver)->check(fix);
  if (!result.ok() || result->corruptions != 0 || result->check_errors != 0)
    return;
  // What a repair calls sound, the next check finds sound.
  require(is_sound(check(file->content())), "a repaired image is sound");
}

class Guest {
 public:
  // `sound`: no structure lies in another's place, so that none is lost when
  // one changes.
  Guest(BlockDriver& driver, bool sound)
      : driver_(driver),
        sound_(sound),
        end_(align_down(driver.length_bytes(), kSectorSizeBytes)) {}

  void look();
  void run(uint8_t operation, uint8_t place);

 private:
  // Small numbers are sectors from the start; large ones spread over the disk.
  uint64_t offset_of(uint8_t place) const {
    const uint64_t sectors = end_ / kSectorSizeBytes;
    const uint64_t sector =
        place < 128 ? place : sectors / 128 * (place - uint64_t{127}) - 1;
    return std::min(sector, sectors - 1) * kSectorSizeBytes;
  }
  ByteRange range_of(uint8_t operation, uint8_t place) const {
    const uint64_t offset = offset_of(place);
    const uint64_t sectors = uint64_t{1} << (operation >> 5);  // 1 to 128
    return {offset, std::min(sectors * kSectorSizeBytes, end_ - offset)};
  }
  void write(ByteRange range, uint8_t fill, bool compressed);
  void must_read_as(ByteRange range, uint8_t fill);
  void use_snapshots(uint8_t place);
  void use_bitmaps(uint8_t place);
  void resize(uint8_t place);
  void use_vmstate(uint8_t place);
  void amend(uint8_t place);
  void learn_length() {
    end_ = align_down(driver_.length_bytes(), kSectorSizeBytes);
  }
  // The first bytes of the disk, or why they cannot be read.
  std::string head();

  BlockDriver& driver_;
  const bool sound_;
  uint64_t end_;
};

// As a guest that looks at what is where, and reads it.
void Guest::look() {
  uint64_t offset = 0;
  for (int step = 0; step < kMaxMapSteps && offset < end_; ++step) {
    const absl::StatusOr<BlockStatus> status = driver_.block_status(
        {offset, end_ - offset}, BlockStatusScope::kWholeChain);
    if (!status.ok()) break;
    require(status->length > 0 && status->length <= end_ - offset,
            "a block status has a length, within what was asked for");
    const uint64_t bytes =
        std::min(align_up(status->length, kSectorSizeBytes), kMaxTransferBytes);
    std::vector<uint8_t> buffer(std::min(bytes, end_ - offset), 0x5a);
    const absl::Status read =
        driver_.read(IoVector(buffer.data(), buffer.size()),
                     Sector::from_byte_offset(offset));
    if (read.ok() && status->zero && status->length % kSectorSizeBytes == 0) {
      require(IoVector(buffer.data(), buffer.size()).is_zero(),
              "what is said to read as zeroes does");
    }
    offset = align_up(offset + status->length, kSectorSizeBytes);
  }
  driver_.list_snapshots().IgnoreError();
  driver_.list_bitmaps().IgnoreError();
}

void Guest::must_read_as(ByteRange range, uint8_t fill) {
  std::vector<uint8_t> buffer(range.length, static_cast<uint8_t>(~fill));
  const absl::Status read =
      driver_.read(IoVector(buffer.data(), buffer.size()),
                   Sector::from_byte_offset(range.offset));
  require(read.ok(),
          absl::StrCat("what was written can be read: ", read.ToString()));
  require(std::all_of(buffer.begin(), buffer.end(),
                      [&](uint8_t byte) { return byte == fill; }),
          "what was written is read back");
}

void Guest::write(ByteRange range, uint8_t fill, bool compressed) {
  std::vector<uint8_t> buffer(range.length, fill);
  const IoVector qiov(buffer.data(), buffer.size());
  const Sector sector = Sector::from_byte_offset(range.offset);
  const absl::Status status = compressed
                                  ? driver_.write_compressed(qiov, sector)
                                  : driver_.write(qiov, sector);
  if (status.ok()) must_read_as(range, fill);
}

void Guest::use_snapshots(uint8_t place) {
  if (place % 4 == 0) {
    SnapshotInfo wanted;
    wanted.name = "fuzz";
    driver_.create_snapshot(wanted).IgnoreError();
    return;
  }
  const absl::StatusOr<std::vector<SnapshotInfo>> all =
      driver_.list_snapshots();
  if (!all.ok() || all->empty()) return;
  const std::string& id = (*all)[place / 4 % all->size()].id;
  const absl::Status status =
      place % 2 == 0 ? driver_.apply_snapshot(id) : driver_.delete_snapshot(id);
  status.IgnoreError();
  learn_length();
}

void Guest::use_bitmaps(uint8_t place) {
  const absl::StatusOr<std::vector<DirtyBitmapInfo>> all =
      driver_.list_bitmaps();
  if (!all.ok()) return;
  if (place % 4 == 0 || all->empty()) {
    driver_.add_bitmap({"fuzz", 0, place % 8 == 0}).IgnoreError();
    return;
  }
  const std::string& name = (*all)[place / 8 % all->size()].name;
  const absl::StatusOr<std::shared_ptr<const DirtyBitmap>> bits =
      driver_.find_bitmap(name);
  absl::Status status = bits.status();
  if (place % 4 == 1) {
    status = driver_.remove_bitmap(name);
  } else if (place % 4 == 2 && bits.ok()) {
    status = driver_.merge_bitmap(all->back().name, **bits);
  } else if (bits.ok()) {
    status = place % 8 == 3 ? driver_.clear_bitmap(name)
                            : driver_.enable_bitmap(name, place % 16 == 7);
  }
  status.IgnoreError();
}

std::string Guest::head() {
  std::string bytes(std::min(kMaxTransferBytes, end_), '\x5a');
  const absl::Status read =
      driver_.read(IoVector(bytes.data(), bytes.size()), Sector(0));
  return read.ok() ? bytes : read.ToString();
}

void Guest::resize(uint8_t place) {
  const uint64_t before = end_;
  const std::string kept = head();
  const uint64_t wanted =
      std::min(end_ / 8 * (place % 16), end_ + kMaxGrowthBytes);
  const absl::Status status = driver_.resize(
      align_down(wanted, kSectorSizeBytes),
      place % 32 < 16 ? Preallocation::kOff : Preallocation::kMetadata);
  learn_length();
  const std::string now = head();
  if (!status.ok()) {
    require(end_ == before, "a resize that failed left the length alone");
  } else if (sound_ && end_ > before) {
    must_read_as({before, std::min(end_ - before, kMaxTransferBytes)}, 0);
    require(now.substr(0, kept.size()) == kept,
            "a longer disk begins as before");
  }
}

void Guest::use_vmstate(uint8_t place) {
  const uint64_t position = uint64_t{place} % 16 * 1000;
  std::string state(600, static_cast<char>(place));
  if (!driver_.write_vmstate(IoVector(state.data(), state.size()), position)
           .ok() ||
      !sound_) {
    return;
  }
  std::string found(state.size(), '\0');
  const absl::Status read =
      driver_.read_vmstate(IoVector(found.data(), found.size()), position);
  require(read.ok() && found == state, "a saved state is read back");
}

void Guest::amend(uint8_t place) {
  static const OptionMap* const kChanges = new OptionMap[]{
      {{"compat", "0.10"}},       {{"compat", "1.1"}},
      {{"refcount_bits", "64"}},  {{"refcount_bits", "16"}},
      {{"refcount_bits", "1"}},   {{"refcount_bits", "2"}},
      {{"lazy_refcounts", "on"}}, {{"lazy_refcounts", "off"}},
  };
  const std::string before = head();
  AmendOptions options;
  options.changes = kChanges[place % 8];
  const absl::Status status = driver_.amend(options);
  if (status.ok() && sound_)
    require(head() == before, "amending leaves the disk as it was");
}

void Guest::run(uint8_t operation, uint8_t place) {
  if (end_ == 0) return;
  const ByteRange range = range_of(operation, place);
  switch (operation % 8) {
    case 0:
    case 1:
      write(range, static_cast<uint8_t>(place | 1), /*compressed=*/false);
      return;
    case 2: {
      const uint64_t cluster =
          driver_.info().cluster_size_bytes.value_or(kSectorSizeBytes);
      if (cluster > kMaxTransferBytes) return;
      const uint64_t offset = align_down(range.offset, cluster);
      if (offset + cluster > end_) return;
      write({offset, cluster}, static_cast<uint8_t>(place | 1),
            /*compressed=*/true);
      return;
    }
    case 3:
      driver_.discard(range).IgnoreError();
      return;
    case 4:
    case 5:
      if (driver_.capabilities().has(Capability::kWriteZeroes) &&
          driver_
              .write_zeroes(range, {.may_unmap = operation % 8 == 4,
                                    .no_fallback = false})
              .ok()) {
        must_read_as(range, 0);
      }
      return;
    case 6:
      if (place < 128) {
        use_snapshots(place);
      } else {
        use_bitmaps(place);
      }
      return;
    default:
      if (place < 64) {
        driver_.flush().IgnoreError();
      } else if (place < 128) {
        resize(place);
      } else if (place < 192) {
        use_vmstate(place);
      } else {
        amend(place);
      }
  }
}

}  // namespace

void require(bool condition, absl::string_view what) {
  if (condition) return;
  std::fprintf(stderr, "violated: %.*s\n", static_cast<int>(what.size()),
               what.data());
  std::abort();
}

std::shared_ptr<const SecretStore> fuzz_secrets() {
  auto secrets = std::make_shared<SecretStore>();
  const absl::Status added = secrets->add("s", SecretBytes::copy_of("s"));
  require(added.ok(), "the secret");
  return secrets;
}

void exercise_image(absl::string_view image,
                    absl::Span<const uint8_t> program) {
  // One thread: there is nothing to detect, and it takes half of the time.
  static const bool once = [] {
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    return true;
  }();
  static_cast<void>(once);
  const std::optional<CheckResult> before = check(image);
  if (is_slow_to_open(image)) return;
  {
    const auto driver =
        qcow2::open_qcow2(std::make_shared<FuzzFile>(image, /*read_only=*/true),
                          options_for(image, /*read_only=*/true), context());
    if (driver.ok()) {
      static_cast<void>((*driver)->info());
      Guest(**driver, is_sound(before)).look();
      (*driver)->close().IgnoreError();
    }
  }
  if (!is_sound(before)) repair(image);

  const auto file = std::make_shared<FuzzFile>(image);
  const auto driver = qcow2::open_qcow2(
      file, options_for(image, /*read_only=*/false), context());
  if (!driver.ok()) {
    // Only a dirty image is changed before it has been accepted: repaired.
    require(file->content() == image || !is_sound(before),
            "an image that is refused is as it was");
    return;
  }
  Guest guest(**driver, is_sound(before));
  for (size_t i = 0; i + 1 < program.size(); i += 2)
    guest.run(program[i], program[i + 1]);
  guest.look();
  (*driver)->close().IgnoreError();
  if (is_sound(before) && file->length_bytes() <= kMaxCheckedBytes) {
    require(is_sound(check(file->content())),
            "what was sound is sound after it was used");
  }
}

}  // namespace spindle::testing

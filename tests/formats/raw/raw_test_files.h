// Files, memory and places that the tests of the raw drivers share.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TESTS_FORMATS_RAW_RAW_TEST_FILES_H_
#define SPINDLE_TESTS_FORMATS_RAW_RAW_TEST_FILES_H_

#include <cstdint>
#include <initializer_list>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {

// A name for a file, unused so far; the file goes when the object goes.
class ScratchFile {
 public:
  enum class Place { kTestFolder, kMemory };  // kMemory: /dev/shm
  explicit ScratchFile(Place place = Place::kTestFolder);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  const std::string& path() const { return path_; }
  void write(const std::vector<uint8_t>& content) const;
  std::vector<uint8_t> content() const;
  uint64_t length() const;
  uint64_t allocated_bytes() const;

 private:
  const std::string path_;
};

// True if /dev/shm is a tmpfs that tests can write to.
bool has_memory_place();

// The default options, with these flags the other way round.
OpenOptions flipped(std::initializer_list<bool OpenOptions::*> flags);

// Makes a new image with qemu-img; `options` as after -o.
absl::Status make_with_qemu(const ImageFile& image, uint64_t size_bytes,
                            const std::string& options = "");

// Bytes that differ from place to place.
std::vector<uint8_t> pattern(size_t length, uint32_t seed);

// Memory aligned to 64 KiB, as one IoVector.
class AlignedMemory {
 public:
  explicit AlignedMemory(size_t length, uint8_t fill = 0);
  explicit AlignedMemory(const std::vector<uint8_t>& content);
  ~AlignedMemory();
  AlignedMemory(const AlignedMemory&) = delete;
  AlignedMemory& operator=(const AlignedMemory&) = delete;

  uint8_t* data() const { return data_; }
  IoVector qiov() const { return IoVector(data_, length_); }
  std::vector<uint8_t> bytes() const { return {data_, data_ + length_}; }

 private:
  const size_t length_;
  uint8_t* data_;
};

// Which of the bytes 100..109 and 200..209 somebody has locked.
std::set<int> locked_bytes(const std::string& path);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_RAW_RAW_TEST_FILES_H_

#include "tests/differential/edits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/io_vector.h"

namespace spindle::testing {

std::string qemu_io_command(const Edit& edit) {
  const std::string range =
      absl::StrCat(" ", edit.range.offset, " ", edit.range.length);
  switch (edit.kind) {
    case Edit::Kind::kWrite:
      return absl::StrCat("write -P ", edit.pattern, range);
    case Edit::Kind::kZero:
      return absl::StrCat("write -z", range);
    case Edit::Kind::kZeroUnmap:
      return absl::StrCat("write -z -u", range);
    case Edit::Kind::kDiscard:
      return absl::StrCat("discard", range);
    case Edit::Kind::kCompressed:
      return absl::StrCat("write -c -P ", edit.pattern, range);
  }
  return {};
}

std::vector<std::string> qemu_io_commands(const std::vector<Edit>& edits) {
  std::vector<std::string> commands;
  for (const Edit& edit : edits) commands.push_back(qemu_io_command(edit));
  return commands;
}

absl::Status apply(const Edit& edit, BlockDevice& device) {
  switch (edit.kind) {
    case Edit::Kind::kWrite: {
      std::vector<uint8_t> bytes(edit.range.length, edit.pattern);
      return device.pwrite(IoVector(bytes.data(), bytes.size()),
                           edit.range.offset);
    }
    case Edit::Kind::kZero:
      return device.write_zeroes(edit.range,
                                 {.may_unmap = false, .no_fallback = false});
    case Edit::Kind::kZeroUnmap:
      return device.write_zeroes(edit.range,
                                 {.may_unmap = true, .no_fallback = false});
    case Edit::Kind::kDiscard:
      return device.discard(edit.range);
    case Edit::Kind::kCompressed: {
      std::vector<uint8_t> bytes(edit.range.length, edit.pattern);
      return device.write_compressed(
          IoVector(bytes.data(), bytes.size()),
          Sector::from_byte_offset(edit.range.offset));
    }
  }
  return absl::OkStatus();
}

absl::Status apply(const Edit& edit, BlockDevice& device, ModelDisk& model) {
  absl::Status status;
  ModelDisk::ChangeRef change;
  switch (edit.kind) {
    case Edit::Kind::kWrite:
    case Edit::Kind::kCompressed: {
      std::vector<uint8_t> bytes(edit.range.length);
      const IoVector qiov(bytes.data(), bytes.size());
      change = model.begin_write(edit.range);
      ModelDisk::fill(*change, qiov);
      status = edit.kind == Edit::Kind::kWrite
                   ? device.pwrite(qiov, edit.range.offset)
                   : device.write_compressed(
                         qiov, Sector::from_byte_offset(edit.range.offset));
      break;
    }
    case Edit::Kind::kZero:
    case Edit::Kind::kZeroUnmap:
      change = model.begin_write_zeroes(edit.range);
      status = apply(edit, device);
      break;
    case Edit::Kind::kDiscard:
      change = model.begin_discard(edit.range);
      status = apply(edit, device);
      break;
  }
  model.end(change, status.ok() ? ModelDisk::Outcome::kDone
                                : ModelDisk::Outcome::kFailed);
  return status;
}

std::vector<Edit> choose_compressed(std::mt19937_64& random,
                                    const EditChoice& choice) {
  std::vector<Edit> edits;
  const uint64_t clusters = choice.length_bytes / choice.cluster_bytes;
  for (uint64_t i = 0; i < clusters && edits.size() < choice.count;
       i += 1 + random() % 2) {
    edits.push_back({.kind = Edit::Kind::kCompressed,
                     .range = {i * choice.cluster_bytes, choice.cluster_bytes},
                     .pattern = static_cast<uint8_t>(1 + random() % 255)});
  }
  return edits;
}

std::vector<Edit> choose_edits(std::mt19937_64& random,
                               const EditChoice& choice) {
  std::vector<Edit> edits;
  const uint64_t clusters = choice.length_bytes / choice.cluster_bytes + 1;
  const uint64_t sectors_per_cluster = choice.cluster_bytes / kSectorSizeBytes;
  while (edits.size() < choice.count) {
    uint64_t offset = random() % clusters * choice.cluster_bytes;
    uint64_t length = (1 + random() % 3) * choice.cluster_bytes;
    if (random() % 2 == 0)
      offset += random() % sectors_per_cluster * kSectorSizeBytes;
    if (random() % 2 == 0)
      length = (1 + random() % (2 * sectors_per_cluster)) * kSectorSizeBytes;
    if (choice.compress && random() % 5 == 0) {
      offset -= offset % choice.cluster_bytes;
      length = choice.cluster_bytes;
      if (offset + length > choice.length_bytes) continue;
      edits.push_back({.kind = Edit::Kind::kCompressed,
                       .range = {offset, length},
                       .pattern = static_cast<uint8_t>(1 + random() % 255)});
      continue;
    }
    if (offset >= choice.length_bytes) continue;
    length = std::min(length, choice.length_bytes - offset);
    static constexpr Edit::Kind kKinds[] = {
        Edit::Kind::kWrite, Edit::Kind::kWrite,     Edit::Kind::kWrite,
        Edit::Kind::kZero,  Edit::Kind::kZeroUnmap, Edit::Kind::kDiscard};
    edits.push_back({.kind = kKinds[random() % std::size(kKinds)],
                     .range = {offset, length},
                     .pattern = static_cast<uint8_t>(1 + random() % 255)});
  }
  return edits;
}

}  // namespace spindle::testing

// Fuzzes a LUKS header: what is accepted keeps its limits, means the same after
// it was written and read again, and can be tried with a password.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/byte_channel.h"
#include "engine/sector.h"
#include "formats/luks/header.h"
#include "formats/luks/key_slots.h"
#include "tests/fuzz/exercise.h"
#include "tests/support/memory_driver.h"

namespace spindle::testing {
namespace {

using luks::Header;

// The file is longer than what is seen of it.
constexpr uint64_t kFileBytes = uint64_t{1} << 42;
// What deriving a key may cost here.
constexpr uint32_t kMaxIterations = 100;

void must_keep_limits(const Header& header) {
  require(header.key_bytes() >= 16 && header.key_bytes() <= 64,
          "the limits of the key's length");
  require(uint64_t{header.payload_sector} * kSectorSizeBytes <= kFileBytes,
          "the limit of the payload's offset");
  for (const luks::KeySlot& slot : header.slots) {
    require(slot.material_sector >= luks::kHeaderSectors &&
                uint64_t{slot.material_sector} + header.material_sectors() <=
                    header.payload_sector,
            "the limits of a slot's place");
  }
}

bool is_cheap(const Header& header) {
  return header.key_iterations <= kMaxIterations &&
         std::all_of(header.slots.begin(), header.slots.end(),
                     [](const luks::KeySlot& slot) {
                       return slot.iterations <= kMaxIterations;
                     });
}

void try_password(const Header& header, absl::Span<const uint8_t> head) {
  MemoryDriver::Options options;
  options.length_bytes = kFileBytes;
  const auto file = std::make_shared<MemoryDriver>(options);
  file->set_content(0,
                    {reinterpret_cast<const char*>(head.data()), head.size()});
  ByteChannel channel(file);
  const absl::StatusOr<Header> read = luks::read_header({&channel}, kFileBytes);
  require(read.ok() && *read == header, "a file has the same header");
  const uint8_t password[] = {'x'};
  const absl::Status status =
      luks::unlock({&channel}, header, password).status();
  require(absl::IsPermissionDenied(status) || absl::IsUnimplemented(status),
          "nobody guesses a password");
}

void fuzz(absl::Span<const uint8_t> head) {
  const absl::StatusOr<Header> header = luks::parse_header(head, kFileBytes);
  if (!header.ok()) return;
  must_keep_limits(*header);
  const auto written = luks::serialise_header(*header);
  const absl::StatusOr<Header> again = luks::parse_header(written, kFileBytes);
  require(again.ok() && *again == *header, "what was written says the same");
  if (is_cheap(*header)) try_password(*header, head);
}

}  // namespace
}  // namespace spindle::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  spindle::testing::fuzz(absl::MakeConstSpan(data, size));
  return 0;
}

// Fuzzes a qcow image: what is done to it, then the file.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "formats/qcow/qcow_format.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/simple_format.h"

namespace spindle::testing {
namespace {

// The backing file of whatever names one.
OpenContext context() {
  OpenContext context;
  context.secrets = fuzz_secrets();
  context.open_child = [](const ChildRequest& request)
      -> absl::StatusOr<std::shared_ptr<BlockDriver>> {
    require(request.filename.size() <= 1023, "a child's name is bounded");
    return std::make_shared<FuzzFile>(std::string(4096, 'B'),
                                      /*read_only=*/true);
  };
  return context;
}

}  // namespace
}  // namespace spindle::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using spindle::testing::kProgramBytes;
  if (size < kProgramBytes) return 0;
  const spindle::testing::SimpleFormat qcow{
      .format = spindle::qcow::qcow_format(),
      // An image that is not encrypted has no use for it.
      .driver_options = {{"encrypt.key-secret", "s"}},
      .context = spindle::testing::context()};
  spindle::testing::exercise_simple_format(
      qcow, absl::MakeConstSpan(data, kProgramBytes),
      {reinterpret_cast<const char*>(data) + kProgramBytes,
       size - kProgramBytes});
  return 0;
}

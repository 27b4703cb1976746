// Fuzzes what says how an image is encrypted: crypt_method, the header
// extension and the LUKS header.  The input changes bits of a sound image that
// is encrypted with LUKS, so that nothing but its length would be the same; its
// keys are other ones in each process.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "engine/byte_order.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "formats/luks/layout.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_format.h"
#include "tests/fuzz/exercise.h"
#include "tests/fuzz/fuzz_file.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kClusterBytes = 4096;

struct Template {
  std::string file;
  // Where the extension's data and the LUKS header are.
  size_t extension = 0;
  size_t luks = 0;
};

void must(const absl::Status& status) {
  require(status.ok(), absl::StrCat("the image: ", status.ToString()));
}

Template make() {
  const auto file = std::make_shared<FuzzFile>("");
  CreateOptions create;
  create.size_bytes = 32 * kClusterBytes;
  create.secrets = fuzz_secrets();
  create.options = {{"cluster_size", absl::StrCat(kClusterBytes)},
                    {"encrypt.format", "luks"},
                    {"encrypt.key-secret", "s"},
                    {"encrypt.iter-time", "0"},
                    {"encrypt.cipher-alg", "aes-128"},
                    {"encrypt.cipher-mode", "cbc"}};
  const ImageFormat& format = *qcow2::qcow2_format();
  must(format.create(file, create, {}));
  OpenOptions options;
  options.driver_options["encrypt.key-secret"] = "s";
  OpenContext context;
  context.secrets = fuzz_secrets();
  const auto driver = format.open(file, options, context);
  must(driver.status());
  std::string data(3 * kClusterBytes, 'x');
  must((*driver)->write(IoVector(data.data(), data.size()), Sector(1)));
  must((*driver)->close());
  Template made;
  made.file = file->content();
  made.extension = made.file.find(std::string("\x05\x37\xbe\x77", 4)) +
                   qcow2::kExtensionHeaderBytes;
  made.luks =
      load_big64(reinterpret_cast<const uint8_t*>(&made.file[made.extension]));
  return made;
}

void fuzz(absl::Span<const uint8_t> program, absl::Span<const uint8_t> bits) {
  static const Template* const sound = new Template(make());
  std::string file = sound->file;
  const auto change = [&](size_t at, size_t count) {
    count = std::min(count, bits.size());
    for (size_t i = 0; i < count; ++i)
      file[at + i] = static_cast<char>(file[at + i] ^ bits[i]);
    bits.remove_prefix(count);
  };
  change(qcow2::kCryptMethodOffset + 3, 1);
  change(sound->extension, qcow2::kEncryptionExtensionBytes);
  change(sound->luks, luks::kHeaderBytes);
  exercise_image(file, program);
}

}  // namespace
}  // namespace spindle::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using spindle::testing::kProgramBytes;
  if (size < kProgramBytes) return 0;
  const absl::Span<const uint8_t> input(data, size);
  spindle::testing::fuzz(input.first(kProgramBytes),
                         input.subspan(kProgramBytes));
  return 0;
}

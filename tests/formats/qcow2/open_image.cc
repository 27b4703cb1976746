#include "tests/formats/qcow2/open_image.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/types/span.h"
#include "engine/byte_order.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/runtime_options.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

void require(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  std::abort();
}

}  // namespace

std::string qemu_image_bytes(uint64_t size_bytes, const std::string& options,
                             const std::vector<std::string>& commands) {
  const ImageFile image{temporary_path("image"), "qcow2"};
  QemuCreate create;
  create.image = image;
  create.size_bytes = size_bytes;
  create.options = options;
  require(qemu_create(create), "qemu-img create");
  if (!commands.empty()) require(qemu_io(image, commands), "qemu-io");
  const auto bytes = read_file(image.path);
  require(bytes.status(), "read");
  ::unlink(image.path.c_str());
  return std::string(bytes->begin(), bytes->end());
}

uint64_t get_big64(const std::string& bytes, uint64_t offset) {
  return load_big64(reinterpret_cast<const uint8_t*>(&bytes[offset]));
}

void set_big64(std::string* bytes, uint64_t offset, uint64_t value) {
  store_big64(reinterpret_cast<uint8_t*>(&(*bytes)[offset]), value);
}

OpenImage::OpenImage(const std::string& bytes, const OptionMap& options,
                     MemoryDriver::Options file_options)
    : memory(std::make_shared<MemoryDriver>(std::move(file_options))),
      file(std::make_shared<ObservingDriver>(memory)) {
  memory->set_content(0, bytes);
  const auto header = qcow2::parse_header(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
      bytes.size());
  require(header.status(), "header");
  OpenOptions open;
  open.driver_options = options;
  const auto runtime = qcow2::parse_runtime_options(open, *header);
  require(runtime.status(), "options");
  auto opened = qcow2::Image::open(file, nullptr, *header, *runtime, nullptr);
  require(opened.status(), "open");
  image = *std::move(opened);
  require(image->prepare_for_writing(), "prepare for writing");
  file->reset_counts();
}

uint64_t OpenImage::refcount(uint64_t cluster) {
  const auto count = image->allocator().refcount(cluster);
  require(count.status(), "refcount");
  return *count;
}

}  // namespace spindle::testing

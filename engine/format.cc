#include "engine/format.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace spindle {

absl::StatusOr<ImageFormat::Measurement> ImageFormat::measure(
    const CreateOptions&, BlockDriver*) const {
  return absl::UnimplementedError(absl::StrCat(
      "Block driver '", name(), "' does not support size measurement"));
}

absl::Status DriverFilter::check_list(size_t, const OptionMap&) const {
  return absl::UnimplementedError(
      absl::StrCat("'", name(), "' takes no list of children"));
}

absl::StatusOr<std::shared_ptr<BlockDriver>> DriverFilter::open_list(
    std::vector<std::shared_ptr<BlockDriver>>, const OpenOptions&) const {
  return absl::UnimplementedError(
      absl::StrCat("'", name(), "' takes no list of children"));
}

const ImageFormat* DriverRegistry::find_format(absl::string_view name) const {
  for (const ImageFormat* format : formats) {
    if (format->name() == name) return format;
  }
  return nullptr;
}

const StorageProtocol* DriverRegistry::find_protocol(
    absl::string_view name) const {
  for (const StorageProtocol* protocol : protocols) {
    if (protocol->name() == name) return protocol;
  }
  return nullptr;
}

const DriverFilter* DriverRegistry::find_filter(absl::string_view name) const {
  for (const DriverFilter* filter : filters) {
    if (filter->name() == name) return filter;
  }
  return nullptr;
}

std::string DriverRegistry::format_names() const {
  return absl::StrJoin(
      formats, ", ", [](std::string* out, const ImageFormat* format) {
        out->append(format->name().data(), format->name().size());
      });
}

}  // namespace spindle

#include "engine/jobs/backing_chain.h"

#include <filesystem>
#include <optional>
#include <system_error>

#include "engine/image_name.h"

namespace spindle {
namespace {

// The file that is there under that name, if one is.
std::optional<std::string> real_path(const std::string& name) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(name, error);
  if (error) return std::nullopt;
  return path.string();
}

bool means_same(const BlockDriver& parent, const std::string& backing_name,
                const std::string& name) {
  if (name == backing_name) return true;
  if (protocol_prefix(name).has_value() ||
      protocol_prefix(backing_name).has_value()) {
    return false;
  }
  const std::string from = parent.filename();
  const auto wanted = real_path(resolve_backing_filename(from, name));
  return wanted.has_value() &&
         wanted == real_path(resolve_backing_filename(from, backing_name));
}

}  // namespace

ChainPlace find_in_chain(const BlockDriver& top, const std::string& name) {
  const BlockDriver* parent = &top;
  for (int layers = 1;; ++layers) {
    std::shared_ptr<BlockDriver> below = parent->backing();
    if (below == nullptr) return {};
    if (means_same(*parent, parent->info().backing_filename, name))
      return {std::move(below), layers};
    parent = below.get();  // owned by the one above it
  }
}

}  // namespace spindle

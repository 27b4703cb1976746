#include "formats/builtin.h"

#include <vector>

#include "formats/filters/filters.h"
#include "formats/luks/luks_format.h"
#include "formats/qcow/qcow_format.h"
#include "formats/qcow2/qcow2_format.h"
#include "formats/raw/protocols.h"
#include "formats/raw/raw_format.h"
#include "formats/vdi/vdi_format.h"

namespace spindle {
namespace {

DriverRegistry make_registry() {
  // Every format but raw: what a guess can find.
  const std::vector<const ImageFormat*> structured = {
      qcow2::qcow2_format(),
      qcow::qcow_format(),
      luks::luks_format(),
      vdi::vdi_format(),
  };
  // Lives as long as the process.
  static const auto* const raw = new RawFormat(structured);

  DriverRegistry registry;
  // The file protocol claims every name, so it comes last.
  registry.protocols = {host_device_protocol(), file_protocol()};
  registry.formats = {raw};
  registry.formats.insert(registry.formats.end(), structured.begin(),
                          structured.end());
  registry.filters = builtin_filters();
  return registry;
}

}  // namespace

const DriverRegistry& builtin_drivers() {
  static const auto* const registry = new DriverRegistry(make_registry());
  return *registry;
}

}  // namespace spindle

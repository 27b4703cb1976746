// RawOverFormat: a raw image whose file is an image of another format, open.
//
// What a guest sees is the same; checks, snapshots and bitmaps are the other
// format's business, and not to be had through this one.
//
// Thread safety: as BlockDriver.
#ifndef SPINDLE_FORMATS_RAW_RAW_OVER_FORMAT_H_
#define SPINDLE_FORMATS_RAW_RAW_OVER_FORMAT_H_

#include <memory>
#include <utility>

#include "engine/filter_driver.h"

namespace spindle {

class RawOverFormat final : public FilterDriver {
 public:
  explicit RawOverFormat(std::shared_ptr<BlockDriver> child)
      : FilterDriver(std::move(child)) {}

  absl::string_view format_name() const override { return "raw"; }
  Capabilities capabilities() const override {
    Capabilities capabilities = child().capabilities();
    for (const Capability one :
         {Capability::kCheck, Capability::kAmend, Capability::kBitmaps,
          Capability::kChangeBacking, Capability::kMakeEmpty}) {
      capabilities.remove(one);
    }
    return capabilities;
  }
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_RAW_OVER_FORMAT_H_

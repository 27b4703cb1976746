// Finding one's way in the backing chain of an open image.
//
// Thread safety: functions without state; drivers as drivers.
#ifndef SPINDLE_ENGINE_JOBS_BACKING_CHAIN_H_
#define SPINDLE_ENGINE_JOBS_BACKING_CHAIN_H_

#include <memory>
#include <string>

#include "engine/block_driver.h"

namespace spindle {

struct ChainPlace {
  std::shared_ptr<BlockDriver> driver;  // null: there is none
  // How many images of the chain lie above it.
  int layers_above = 0;
};

// The image below `top` that `name` means: as it stands in the image above it,
// or the same file, where a relative name starts at that image's directory.
ChainPlace find_in_chain(const BlockDriver& top, const std::string& name);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_BACKING_CHAIN_H_

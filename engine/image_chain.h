// The images between the one that was asked for and the one being opened.
//
// Thread safety: immutable.
#ifndef SPINDLE_ENGINE_IMAGE_CHAIN_H_
#define SPINDLE_ENGINE_IMAGE_CHAIN_H_

#include <memory>
#include <optional>
#include <string>

#include "engine/block_driver.h"
#include "engine/image_opener.h"

namespace spindle {

struct ImageOpener::ChainLink {
  std::string filename;
  std::optional<StorageIdentity> identity;
  Chain parent;
  // Its format was guessed only because nobody could state it.
  bool names_are_suspect = false;

  // The one that stores to the file `identity`, or null.
  static const ChainLink* find(const ChainLink* link,
                               const std::optional<StorageIdentity>& identity) {
    if (!identity.has_value()) return nullptr;
    while (link != nullptr && link->identity != identity)
      link = link->parent.get();
    return link;
  }
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_IMAGE_CHAIN_H_

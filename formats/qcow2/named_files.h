// What a qcow2 header names besides the image's own file.
//
// Thread safety: a function without state.
#ifndef SPINDLE_FORMATS_QCOW2_NAMED_FILES_H_
#define SPINDLE_FORMATS_QCOW2_NAMED_FILES_H_

#include <string>

#include "formats/cluster/image_files.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

inline NamedFiles files_named_by(const Header& header) {
  return {.backing_filename = header.backing_filename,
          .backing_format = header.backing_format,
          .has_data_file = header.has_data_file(),
          .data_filename = std::string(header.data_filename())};
}

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_NAMED_FILES_H_

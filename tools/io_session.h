// IoSession: what lasts from one command of spindle-io to the next: the image
// that is open, and what the program's own options say of all images.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_IO_SESSION_H_
#define SPINDLE_TOOLS_IO_SESSION_H_

#include <memory>
#include <utility>

#include "engine/secret_store.h"
#include "tools/io_image.h"

namespace spindle {

class IoSession {
 public:
  // `image_opts`: names of images are lists of options.  `secrets` may be null.
  IoSession(bool image_opts, std::shared_ptr<const SecretStore> secrets)
      : image_opts_(image_opts), secrets_(std::move(secrets)) {}

  bool image_opts() const { return image_opts_; }
  // Null if none is open.
  IoImage* image() const { return image_.get(); }

  // False, and a message, if the image cannot be opened, or one is open.
  bool open(const IoTarget& target);
  // Waits for what is under way.  False, and a message, if not everything could
  // be written.
  bool close();

 private:
  const bool image_opts_;
  const std::shared_ptr<const SecretStore> secrets_;
  std::unique_ptr<IoImage> image_;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_SESSION_H_

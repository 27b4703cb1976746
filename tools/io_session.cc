#include "tools/io_session.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/cache_mode.h"
#include "engine/errors.h"
#include "tools/cli_text.h"

namespace spindle {

bool IoSession::open(const IoTarget& target) {
  if (image_ != nullptr) {
    fail("file open already, try 'help close'");
    return false;
  }
  absl::StatusOr<std::unique_ptr<IoImage>> image =
      IoImage::open(target, secrets_);
  if (!image.ok()) {
    const std::string device =
        target.filename.has_value()
            ? absl::StrCat("can't open device ", *target.filename)
            : "can't open";
    fail(absl::StrCat(device, ": ", qemu_words(image.status())));
    return false;
  }
  image_ = *std::move(image);
  return true;
}

bool IoSession::close() {
  if (image_ == nullptr) return true;
  // Then what was said to be written is durable already, whatever happens now.
  const bool nothing_is_lost = is_writethrough(image_->device().cache_mode());
  const absl::Status status = image_->close();
  image_.reset();
  if (status.ok() || nothing_is_lost) return true;
  fail(status.message());
  return false;
}

}  // namespace spindle

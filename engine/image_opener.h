// ImageOpener: from a file name to an open driver chain.
//
// It is the default answer to "which files may an image open?": a backing file
// is looked up relative to the image that names it, opened read-only, with the
// format that the image states; a data file is opened as bare storage; a name
// is a file name and nothing else (one with a protocol prefix, "json:" or
// "nbd:", is refused).  Chains that loop or are too deep are refused. An
// embedder that wants less wraps child_policy, or writes its own OpenChild.
//
// Thread safety: a const ImageOpener may be used from any thread.
#ifndef SPINDLE_ENGINE_IMAGE_OPENER_H_
#define SPINDLE_ENGINE_IMAGE_OPENER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"

namespace spindle {

class ImageOpener {
 public:
  // As deep as a backing chain may be.
  static constexpr int kMaxChainDepth = 200;

  struct Policy {
    // May the format of a file be guessed where it is not stated?  A guest that
    // controls a raw disk's first sector controls the guess (CVE-2008-2004).
    bool probe_image = false;
    bool probe_backing = false;
    // Asked before a file that an image names is opened; an error refuses it.
    // Empty: everything may be opened.
    std::function<absl::Status(const ChildRequest& request)> child_policy =
        nullptr;
    LogSink log = nullptr;
    // What options like "key-secret=ID" refer to; may be null.
    std::shared_ptr<const SecretStore> secrets = nullptr;
  };

  ImageOpener(DriverRegistry registry, Policy policy);

  // Opens `filename` as `format`; where the registry has blkdebug, also the
  // name "blkdebug:CONFIG:FILENAME".  An empty format means "guess", and is an
  // error unless the policy allows it.  The name of a protocol ("file",
  // "host_device") stands for the bare storage, without a format.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      const std::string& filename, const std::string& format,
      const OpenOptions& options) const;

  // Opens what `nodes` describes, by QEMU's names: "driver" is a format, a
  // protocol or a filter; "file.driver" and so on (a filter may use another
  // name than "file") the driver below it; "filename" what a protocol opens;
  // all else are the driver's own options.  The caller states every name here,
  // images none.
  // Errors: kInvalidArgument names the option.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_nodes(
      const OptionMap& nodes, const OpenOptions& options) const;

  // Makes a new image.  For an overlay the backing file is opened once, to
  // check it and to learn its length.
  absl::Status create(const std::string& filename, const std::string& format,
                      const CreateOptions& options) const;

  // The name of the format that `filename` most likely has.
  absl::StatusOr<std::string> probe(const std::string& filename) const;

  const DriverRegistry& registry() const { return registry_; }

 private:
  // The images from the one that was asked for down to the one being opened.
  struct ChainLink;
  using Chain = std::shared_ptr<const ChainLink>;

  absl::StatusOr<std::shared_ptr<BlockDriver>> open_file(
      const std::string& filename, const OpenOptions& options) const;
  // "blkdebug:CONFIG:FILENAME", from the caller: images cannot name it.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_blkdebug_name(
      const std::string& filename, const OpenOptions& options) const;
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_linked(
      const std::string& filename, const std::string& format_name,
      OpenOptions options, const Chain& parents, int depth) const;
  // Opens the image in `file` as `format`, or as what is found in it.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_image(
      const std::string& filename, const ImageFormat* format,
      std::shared_ptr<BlockDriver> file, OpenOptions options,
      const Chain& parents, int depth) const;
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_child(
      const ChildRequest& request, const OpenOptions& parent_options,
      const Chain& parents) const;
  // What a format needs to open what its image names.  Holds a copy of this
  // opener, so it may outlive it.
  OpenContext context_for(const OpenOptions& options, const Chain& chain,
                          int depth) const;
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_data_file(
      const ChildRequest& request, const OpenOptions& options,
      const Chain& parents) const;
  absl::Status create_data_file(const ImageFormat& format,
                                const CreateOptions& options,
                                const BlockDriver& image) const;
  absl::StatusOr<const ImageFormat*> format_for(
      const std::string& format_name) const;
  absl::StatusOr<const ImageFormat*> guess_format(
      const std::shared_ptr<BlockDriver>& file) const;

  absl::StatusOr<const StorageProtocol*> protocol_for(
      const std::string& filename) const;
  absl::Status check_backing(const std::string& filename,
                             CreateOptions* options) const;
  absl::Status refuse_own_backing(const std::string& filename,
                                  const BlockDriver& backing) const;

  const DriverRegistry registry_;
  const Policy policy_;
};

// Where `filename`, as it stands in the image `parent_filename`, points to: an
// absolute name is itself, a relative one starts at the image's directory.
std::string resolve_backing_filename(const std::string& parent_filename,
                                     const std::string& filename);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_IMAGE_OPENER_H_

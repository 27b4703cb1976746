// ImageOpener: from a file name to an open driver chain.
//
// It is the default answer to "which files may an image open?": a backing file
// is looked up relative to the image that names it, opened read-only, with the
// format that the image states; a data file is opened as bare storage; a name
// is a file name and nothing else (one with a protocol prefix, "json:" or
// "nbd:", is refused), unless the policy says that prefixes are followed.
// Chains that loop or are too deep are refused. An embedder that wants less
// wraps child_policy, or writes its own OpenChild.
//
// Thread safety: a const ImageOpener may be used from any thread.
#ifndef SPINDLE_ENGINE_IMAGE_OPENER_H_
#define SPINDLE_ENGINE_IMAGE_OPENER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_name.h"

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
    // The same for backing files whose format the image has no place to state
    // (qcow).  If that finds an image that names further files, they are not
    // opened: it may be a guest who names them.
    bool probe_unstatable_backing = false;
    // How names are read that the caller gives, and those that images have.
    // What prefixes and "json:" in an image's name lead to is the choice of who
    // made the image.
    NameSyntax name_syntax = NameSyntax::kPlain;
    NameSyntax image_name_syntax = NameSyntax::kPlain;
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
  // "backing.*" and "data-file.*" replace what the image names ("backing" that
  // is kNullOption or empty: nothing); what node_options.h lists concerns the
  // node that it stands at; all else are the driver's own options.  Without a
  // driver the format is guessed, if the policy allows it.
  // Errors: kInvalidArgument names the option.
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_nodes(
      const OptionMap& nodes, const OpenOptions& options) const;

  // An image whose format is known, and which is not open: only its storage is.
  struct Inspected {
    std::shared_ptr<BlockDriver> file;
    // The topmost driver's name.
    std::string driver;
    // Null: `file` is all that there is (that driver is a protocol or a
    // filter).
    const ImageFormat* format = nullptr;
    // How the format would have been opened, its own options included.
    OpenOptions options;
  };
  // As open() and open_nodes(), up to where the format would read its header.
  absl::StatusOr<Inspected> inspect(const std::string& filename,
                                    const std::string& format,
                                    const OpenOptions& options) const;
  absl::StatusOr<Inspected> inspect_nodes(const OptionMap& nodes,
                                          const OpenOptions& options) const;

  // Makes a new image.  For an overlay the backing file is opened once, to
  // check it and to learn its length.
  absl::Status create(const std::string& filename, const std::string& format,
                      const CreateOptions& options) const;

  // What create() refuses of the names and values of `options.options` before
  // it looks at anything else.  No I/O.
  absl::Status check_create_options(const std::string& filename,
                                    const std::string& format,
                                    const CreateOptions& options) const;

  // The name, without a prefix, of the file that create() makes for `filename`.
  // Errors: kInvalidArgument if there is no way to make one.
  absl::StatusOr<std::string> new_file_name(const std::string& filename) const;

  // The name of the format that `filename` most likely has.
  absl::StatusOr<std::string> probe(const std::string& filename) const;

  const DriverRegistry& registry() const { return registry_; }

 private:
  using Driver = std::shared_ptr<BlockDriver>;
  // The images from the one that was asked for down to the one being opened.
  struct ChainLink;
  using Chain = std::shared_ptr<const ChainLink>;
  struct Place {
    Chain parents = nullptr;
    int depth = 0;
    // Set: the format is not opened, but named here.
    Inspected* inspected = nullptr;
  };
  // What shall be opened: a name, options, or both.
  struct Description {
    std::optional<std::string> name;
    NameSyntax syntax = NameSyntax::kPlain;
    OptionMap options;
    // Bare storage unless a driver is stated: no format is guessed.
    bool storage = false;
  };
  // What the caller put in place of what an image names.
  struct Replacements {
    std::optional<OptionMap> backing;
    OptionMap data_file;
  };

  Description describe_name(const std::string& filename,
                            const std::string& format,
                            const OpenOptions& options) const;
  Description describe_nodes(const OptionMap& nodes,
                             const OpenOptions& options) const;
  absl::StatusOr<Inspected> inspect_description(
      Description what, const OpenOptions& options) const;
  absl::StatusOr<Driver> open_description(Description what, OpenOptions options,
                                          const Place& place) const;
  absl::StatusOr<Driver> open_protocol(const StorageProtocol& protocol,
                                       Description what,
                                       OpenOptions options) const;
  absl::StatusOr<Driver> open_storage(Description what,
                                      const OpenOptions& options) const;
  absl::StatusOr<Driver> open_filter(const DriverFilter& filter,
                                     Description what, OpenOptions options,
                                     const Place& place) const;
  // A filter over a list of children.
  absl::StatusOr<Driver> open_list_filter(const DriverFilter& filter,
                                          Description what, OpenOptions options,
                                          const Place& place) const;
  // A null format is guessed.
  absl::StatusOr<Driver> open_format(const ImageFormat* format,
                                     Description what, OpenOptions options,
                                     const Place& place) const;
  // The driver below a format.
  absl::StatusOr<Driver> open_format_file(const ImageFormat* format,
                                          Description* what,
                                          const OpenOptions& options) const;
  absl::StatusOr<Replacements> take_replacements(const ImageFormat& format,
                                                 OptionMap* own,
                                                 OpenOptions* options) const;
  // Opens the image in `file` as `format`, or as what is found in it.
  absl::StatusOr<Driver> open_image(const ImageFormat* format, Driver file,
                                    OptionMap own, OpenOptions options,
                                    const Place& place) const;
  absl::StatusOr<Driver> open_child(const ChildRequest& request,
                                    const OpenOptions& parent_options,
                                    const Replacements& replacements,
                                    const Chain& parents) const;
  // What a format needs to open what its image names.  Holds a copy of this
  // opener, so it may outlive it.
  OpenContext context_for(const OpenOptions& options, Replacements replacements,
                          const Place& place) const;
  // OK if the file that an image names may be opened.
  absl::Status check_child(const ChildRequest& request,
                           const Chain& parents) const;
  absl::StatusOr<Driver> open_backing(const ChildRequest& request,
                                      Description what, OpenOptions options,
                                      const Chain& parents) const;
  absl::StatusOr<Driver> open_data_file(Description what, OpenOptions options,
                                        const Chain& parents) const;
  absl::Status create_data_file(const ImageFormat& format,
                                const CreateOptions& options,
                                const BlockDriver& image) const;
  absl::StatusOr<const ImageFormat*> format_for(
      const std::string& format_name) const;
  absl::StatusOr<const ImageFormat*> guess_format(
      const std::shared_ptr<BlockDriver>& file) const;

  // Whose the name is; strips a prefix that only says so.
  absl::StatusOr<const StorageProtocol*> protocol_for(
      NameSyntax syntax, std::string* filename) const;
  // The filter that `name` has the prefix of ("blkdebug:..."), or null.
  const DriverFilter* filter_for(absl::string_view name) const;
  absl::Status check_backing(const std::string& filename,
                             CreateOptions* options) const;
  absl::Status refuse_own_backing(const std::string& filename,
                                  const BlockDriver& backing) const;

  const DriverRegistry registry_;
  const Policy policy_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_IMAGE_OPENER_H_

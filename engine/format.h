// What a format or a storage protocol offers besides open images: opening,
// creating, recognising.  formats/builtin.h lists the ones that Spindle has;
// an embedder hands that list, or its own, to an ImageOpener.
//
// Thread safety: implementations are stateless; any thread may call anything.
#ifndef SPINDLE_ENGINE_FORMAT_H_
#define SPINDLE_ENGINE_FORMAT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "engine/request.h"
#include "engine/secret_store.h"

namespace spindle {

// "name=value" options, by QEMU's names ("l2-cache-size", "cluster_size").
using OptionMap = std::map<std::string, std::string>;

enum class LogSeverity { kInfo, kWarning, kError };
// Receives what would otherwise go to stderr.  Called from any thread, possibly
// several at a time; must not call back into the image that logs.
using LogSink =
    std::function<void(LogSeverity severity, absl::string_view message)>;

// Which internal snapshot: the first that has all that is stated here, of which
// one must be; or by `id_or_name` alone, an id before a name.
struct SnapshotChoice {
  std::string id = {};
  std::string name = {};
  std::string id_or_name = {};
};

struct OpenOptions {
  bool read_only = false;
  // Open read-only a file that cannot be opened for writing.
  bool auto_read_only = false;
  // Bypass the page cache (O_DIRECT).
  bool direct = false;
  // flush() does nothing (cache=unsafe).
  bool no_flush = false;
  // Pass discards down to the file (QEMU's discard=unmap); formats forget their
  // clusters either way.
  bool pass_discard_through = true;
  // What the user of this image discards is forgotten (QEMU's discard=unmap);
  // else discards do nothing, and what is made zero stays allocated.  Does not
  // concern the files below it.
  bool discard = true;
  // What becomes of writes that are all zeroes.
  DetectZeroes detect_zeroes = DetectZeroes::kOff;
  // Share a file that somebody else has open for writing (-U): takes no
  // permission from others.  Only with read_only.
  bool force_share = false;
  // Take file locks as QEMU does; off only for tests and odd file systems.
  bool lock = true;
  // Open the backing file, if the image names one.
  bool open_backing = true;
  // There is a backing file, whether the image names one or not:
  // OpenContext::open_child knows which.
  bool backing_given = false;
  // Clusters are taken where QEMU takes them (qcow2: the default of "reuse").
  bool place_as_qemu = false;
  // Open what is damaged, or must be repaired before it is written to, for
  // BlockDriver::check() and nothing else.  Formats that cannot check ignore
  // it.
  bool for_check = false;
  // Show this snapshot instead of the disk.  Only with read_only; formats
  // without snapshots refuse it.
  std::optional<SnapshotChoice> snapshot = {};
  // The format was guessed from the content, not stated.  raw then refuses
  // writes that would change what a later guess finds.
  bool probed = false;
  OptionMap driver_options;
};

enum class ChildRole { kFile, kBacking, kDataFile };

// A file that an image names.  The name is data: it comes from the image,
// unless an option of the caller has replaced it.
struct ChildRequest {
  std::string filename;
  std::string format;  // empty: the image does not state it
  // False: images of its format have no place for that (qcow).
  bool format_can_be_stated = true;
  ChildRole role = ChildRole::kBacking;
  bool read_only = true;
  // The driver of the file that names the child: relative names of backing
  // files start at its directory, those of data files where the process is, as
  // in QEMU.
  std::string parent_filename;
  // 1 for the backing file of the image itself, and so on.
  int depth = 1;
};

// How a format opens what its image names; the embedder decides what may be
// opened.
using OpenChild = std::function<absl::StatusOr<std::shared_ptr<BlockDriver>>(
    const ChildRequest& request)>;

struct OpenContext {
  OpenChild open_child = nullptr;  // may be empty: nothing may be opened
  // What "key-secret=ID" and its like refer to; may be null.
  std::shared_ptr<const SecretStore> secrets = nullptr;
  LogSink log = nullptr;  // may be empty
  int depth = 0;
};

struct CreateOptions {
  // The length of the new image; for an overlay it may be left out, and is
  // then that of the backing file.
  std::optional<uint64_t> size_bytes;
  std::string backing_filename;
  std::string backing_format;
  // Do not open the backing file to check it (-u).
  bool unsafe_backing = false;
  // What "key-secret=ID" and its like refer to; may be null.
  std::shared_ptr<const SecretStore> secrets = nullptr;
  // Everything else, by QEMU's names; unknown names are errors.
  OptionMap options;
};

struct OptionHelp {
  std::string name;
  std::string type;  // "<size>", "<bool (on/off)>", ...
  std::string help;
};

// A way to store bytes: opens by name.
class StorageProtocol {
 public:
  virtual ~StorageProtocol() = default;
  // "file", "host_device".
  virtual absl::string_view name() const = 0;
  // True if `filename` is this protocol's to open when none was stated.
  virtual bool claims(const std::string& filename) const = 0;
  // `options.driver_options` are the protocol's own.
  // Errors: kInvalidArgument for an option that it does not know.
  virtual absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      const std::string& filename, const OpenOptions& options) const = 0;
  // Whether create() understands `options`.  No I/O.
  virtual absl::Status check_create(const OptionMap& options) const {
    static_cast<void>(options);
    return absl::OkStatus();
  }
  // Makes an empty file of `length_bytes`, replacing what was there (a block
  // device stays as it is, and fails if it is too small).  `log` may be empty.
  virtual absl::Status create(const std::string& filename,
                              uint64_t length_bytes, const OptionMap& options,
                              const LogSink& log) const = 0;
  virtual std::vector<OptionHelp> create_options() const { return {}; }
};

// An image format over some storage.
class ImageFormat {
 public:
  virtual ~ImageFormat() = default;
  // "raw", "qcow2".
  virtual absl::string_view name() const = 0;
  // How sure this format is that `head`, the first bytes of a file (at most
  // 64 KiB; fewer if it is shorter), begins an image of its own: 0 not at all,
  // 1 as a last resort (raw), 100 certain.
  virtual int probe(absl::Span<const uint8_t> head,
                    absl::string_view filename) const = 0;
  // Opens the image in `file`.  Either succeeds or leaves nothing behind and
  // the file untouched.
  virtual absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions& options,
      const OpenContext& context) const = 0;
  // Whether create() would accept `options`: asked before an older file of that
  // name is replaced.  No I/O.
  // REQUIRES: options.size_bytes has a value.
  virtual absl::Status check_create(const CreateOptions& options) const {
    static_cast<void>(options);
    return absl::OkStatus();
  }
  // A file for the guest's data that create() wants to exist besides `file`.
  struct NewDataFile {
    std::string filename;
    uint64_t length_bytes = 0;
    OptionMap options;  // for the protocol
  };
  // REQUIRES: check_create(options) was OK.
  virtual absl::StatusOr<std::optional<NewDataFile>> new_data_file(
      const CreateOptions& options) const {
    static_cast<void>(options);
    return std::nullopt;
  }
  // Makes a new, empty image in `file`, which exists and is empty.
  // REQUIRES: options.size_bytes has a value.
  virtual absl::Status create(std::shared_ptr<BlockDriver> file,
                              const CreateOptions& options,
                              const OpenContext& context) const = 0;
  virtual std::vector<OptionHelp> create_options() const = 0;
  // What BlockDriver::amend() can change; empty: nothing.
  virtual std::vector<OptionHelp> amend_options() const { return {}; }
  virtual bool supports_backing() const { return false; }
  // How much space a file takes that holds a new image.
  struct Measurement {
    // With the content of a source (none: empty), at most.
    uint64_t required_bytes = 0;
    // With data everywhere.
    uint64_t fully_allocated_bytes = 0;
    // For copies of the source's persistent bitmaps, beside that; nothing if
    // the format or the source keeps none.
    std::optional<uint64_t> bitmaps_bytes = std::nullopt;
  };
  // `source` may be null; of one, block_status() is asked.
  // REQUIRES: options.size_bytes has a value: that of the source, if there is
  // one.
  // Errors: kUnimplemented for a format that cannot say; those of
  // check_create().
  virtual absl::StatusOr<Measurement> measure(const CreateOptions& options,
                                              BlockDriver* source) const;
  // Whether what nobody has written reads as zeroes in an image that
  // create(options) made (encrypted: as noise).
  // REQUIRES: options.size_bytes has a value.
  virtual bool new_images_read_as_zeroes(const CreateOptions& options) const {
    static_cast<void>(options);
    return true;
  }
  // How much of the file create() needs before it starts (raw: the image's
  // size; formats that grow: 0), with what the protocol must know of `options`.
  virtual uint64_t initial_file_length(const CreateOptions& options) const = 0;
};

// A driver over another one, or over nothing, by QEMU's name.
class DriverFilter {
 public:
  virtual ~DriverFilter() = default;
  // "copy-on-read", "null-co".
  virtual absl::string_view name() const = 0;
  // The options that begin with this name and a dot describe the driver below
  // ("file", "image"); empty: there is none.
  virtual absl::string_view child_option() const { return "file"; }
  // There are several below: "children.0", "children.1" and so on, where
  // child_option() says "children".  open_list() opens it.
  virtual bool takes_list() const { return false; }
  // Stands where a protocol could: it may be named by a prefix
  // ("blkdebug:..."), and no format is guessed in what is below it.
  virtual bool is_storage() const { return false; }
  // What a name means that is this filter's to open.
  struct NameMeaning {
    OptionMap options;  // of the filter
    std::optional<std::string> child_name;
  };
  // Errors: kInvalidArgument.
  virtual absl::StatusOr<NameMeaning> parse_name(
      const std::string& name) const {
    return NameMeaning{{}, name};
  }
  // Either succeeds or leaves `child` as it was.  `options.driver_options` are
  // the filter's own.
  // REQUIRES: child is null if and only if child_option() is empty.
  // Errors: kInvalidArgument for an option that it does not know.
  virtual absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> child, const OpenOptions& options) const = 0;
  // Whether open_list() would take the options, asked before any child is
  // opened.
  virtual absl::Status check_list(size_t child_count,
                                  const OptionMap& options) const;
  // REQUIRES: takes_list(), no child is null.
  virtual absl::StatusOr<std::shared_ptr<BlockDriver>> open_list(
      std::vector<std::shared_ptr<BlockDriver>> children,
      const OpenOptions& options) const;
};

// Non-owning lists of static objects.
struct DriverRegistry {
  std::vector<const StorageProtocol*> protocols;  // asked in order
  std::vector<const ImageFormat*> formats;
  std::vector<const DriverFilter*> filters;

  // Null if there is none of that name.
  const ImageFormat* find_format(absl::string_view name) const;
  const StorageProtocol* find_protocol(absl::string_view name) const;
  const DriverFilter* find_filter(absl::string_view name) const;
  // "raw, qcow2": for messages.
  std::string format_names() const;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_FORMAT_H_

// The other implementation as a judge: qemu-img and qemu-io, run as programs.
//
// Every function runs one process and waits for it.  Errors carry the command
// line and what it printed.  An image must not be open in this process while a
// tool writes to it (file locks).
//
// Thread safety: functions without state; any thread may call them.
#ifndef SPINDLE_TESTS_SUPPORT_QEMU_TOOLS_H_
#define SPINDLE_TESTS_SUPPORT_QEMU_TOOLS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace spindle::testing {

struct ToolResult {
  int exit_code = -1;  // 128 + signal if it was killed
  std::string output;  // what it wrote to both stdout and stderr, in order
};

// Runs `arguments[0]`, found in PATH.
absl::StatusOr<ToolResult> run_tool(const std::vector<std::string>& arguments);
// The same with `input` as its standard input, and stderr apart from stdout.
struct SeparateResult {
  int exit_code = -1;
  std::string output;
  std::string errors;
};
absl::StatusOr<SeparateResult> run_tool_apart(
    const std::vector<std::string>& arguments, absl::string_view input = {});
// Runs it and returns its output; an error if it fails.
absl::StatusOr<std::string> run_tool_ok(
    const std::vector<std::string>& arguments);

struct ImageFile {
  std::string path;
  std::string format;
  // What opens it if it is encrypted (a qcow2, or a LUKS volume).
  std::string passphrase = {};
  // ",backing.encrypt.key-secret=secret0": more of what opens it, where there
  // is a passphrase, which is "secret0".
  std::string more_options = {};
};
// The name of the option that names the secret, for the image's format.
std::string secret_option(const ImageFile& image);

struct QemuCreate {
  ImageFile image;
  uint64_t size_bytes = 0;
  std::string options;  // as after -o; may be empty
  std::optional<ImageFile> backing;
};
absl::Status qemu_create(const QemuCreate& create);

// `arguments` go between "convert" and the file names ("-c").
absl::Status qemu_convert(const ImageFile& from, const ImageFile& to,
                          const std::string& options,
                          const std::vector<std::string>& arguments = {});

// OK only if nothing at all is wrong: no corruption and no leaked cluster.
absl::Status qemu_check(const ImageFile& image);

// OK only if both hold the same content for a guest and have the same length.
absl::Status qemu_compare(const ImageFile& a, const ImageFile& b);

// One range of `qemu-img map`.
struct MapEntry {
  uint64_t start = 0;
  uint64_t length = 0;
  int depth = 0;
  bool zero = false;
  bool data = false;
  bool compressed = false;
  std::optional<uint64_t> offset;
  bool operator==(const MapEntry&) const = default;
};
std::string to_string(const MapEntry& entry);
absl::StatusOr<std::vector<MapEntry>> qemu_map(const ImageFile& image);

// What `map` says about where clusters lie, without what depends on holes in
// the file that they lie in: neighbours that go on at the next offset are one,
// and whether they are data or zero counts only where they lie nowhere.
std::vector<MapEntry> placement(const std::vector<MapEntry>& map);

// Runs `commands` ("write -P 7 0 64k", "discard 0 1M") in one qemu-io process,
// in order; an error if any of them fails.  The image is flushed and closed.
struct QemuIoOptions {
  bool read_only = false;
  // discard=unmap, so that discards reach the format's file.
  bool unmap = true;
};
absl::Status qemu_io(const ImageFile& image,
                     const std::vector<std::string>& commands,
                     QemuIoOptions options = {});

// Writes `content` to the file `path`, replacing it.
absl::Status write_file(const std::string& path,
                        absl::Span<const uint8_t> content);
absl::StatusOr<std::vector<uint8_t>> read_file(const std::string& path);

// A new name below TEST_TMPDIR (or TMPDIR) that no other call returned.
std::string temporary_path(absl::string_view stem);
// The same on tmpfs (SPINDLE_TMPFS or /dev/shm), where that can be written to:
// nothing there waits for a disk.
std::string tmpfs_path(absl::string_view stem);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_QEMU_TOOLS_H_

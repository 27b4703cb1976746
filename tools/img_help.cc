#include "tools/img_help.h"

#include <cstdio>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/format.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"

namespace spindle {
namespace {

// The version of QEMU whose qemu-img this program stands in for, and our own.
constexpr char kQemuVersion[] = "7.2.22";
constexpr char kVersion[] = "0.1";

constexpr char kCommands[] =
    R"(  amend [--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename
  bench [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename
  bitmap (--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap
  check [--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] filename
  commit [--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename
  compare [--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2
  convert [--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] [--bitmaps] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] [-r rate_limit] [-m num_coroutines] [-W] [--salvage] filename [filename2 [...]] output_filename
  create [--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]
  dd [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output
  info [--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename
  map [--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] filename
  measure [--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] filename]
  snapshot [--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename
  rebase [--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] -b backing_file [-F backing_fmt] filename
  resize [--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size
)";

// What qemu-img does not have, in the same form.
constexpr char kExtensions[] =
    R"(  bench [--threads=number] [--random] [--seed=number] [--inline] [--sweep [--picture=file]]
  map [--picture=file]
)";

constexpr char kParameters[] =
    R"(Every command also takes --restrict: formats of backing files are not guessed, and
what an image names is a file, whatever the name begins with.

What the words mean:
  filename     an image: a file, with or without "file:", "json:{...}", or, with
               --image-opts, options such as driver=qcow2,file.filename=disk
  objectdef    secret,id=ID,data=TEXT|file=NAME|env=NAME[,format=raw|base64]: a
               password that key-secret=ID refers to
  fmt          the image's format; guessed where it is not stated
  cache        none, writeback, writethrough, directsync or unsafe, for what is
               written (writeback; convert: unsafe)
  src_cache    the same for what is only read
  size         in bytes; k, M, G, T, P and E stand for powers of 1024
  options      name=value,... of a new image; "-o help" lists those of a format
  ofmt         human or json
  snapshot_param
               snapshot.id=ID,snapshot.name=NAME, or an id or a name

Options of several commands:
  -f -F -O     formats: of the first image, of the second or of a backing file, of
               what is written
  -p           show how far it is; SIGUSR1 asks for it once
  -q           print errors only
  -U           open also what somebody else is writing
  -n           convert: the target is there already
  -c           convert: compress
  -u           rebase, create: do not look into the backing file
  -W -m        convert: write in any order; so many pieces at a time
  -S           convert: as many zeroes in a row are not written (4k); 0: all are
  -r           check: repair leaks or all; convert, commit: bytes a second
  --picture    map: draw, layer by layer, what is data, compressed, zero or a hole;
               bench --sweep: draw throughput and latency over queue depth, beside
               qemu-img's where that is installed; the file's name ends with .svg
               or .png
  --threads    bench: this many; --random (--seed): anywhere, not in order;
               --inline: requests may run where they are made; --sweep: a table
               of queue depths and threads
)";

std::string supported_formats() {
  const DriverRegistry& registry = builtin_drivers();
  std::set<std::string> names;
  const auto add = [&names](const auto& drivers) {
    for (const auto* driver : drivers) names.emplace(driver->name());
  };
  add(registry.protocols);
  add(registry.formats);
  add(registry.filters);
  return absl::StrJoin(names, " ");
}

}  // namespace

void print_version() {
  std::printf("%s version %s (Spindle %s)\n", program_name().c_str(),
              kQemuVersion, kVersion);
}

void print_help() {
  print_version();
  std::printf(
      "usage: %s [standard options] command [command options]\n"
      "Makes, copies, inspects and changes disk images.\n"
      "\n"
      "    '-h', '--help'       display this help and exit\n"
      "    '-V', '--version'    output version information and exit\n"
      "    '-T', '--trace'      accepted; there are no trace points\n"
      "    '--restrict'         as for every command\n"
      "\n"
      "Command syntax:\n%s\nBeyond qemu-img's:\n%s\n%s\n"
      "Supported formats: %s\n",
      program_name().c_str(), kCommands, kExtensions, kParameters,
      supported_formats().c_str());
}

}  // namespace spindle

#!/usr/bin/env bash
# Builds spindle-img, makes a qcow2 image with real data in it, and measures how
# fast Spindle reads and writes a copy of that image.
#
#   scripts/demo.sh [MEBIBYTES]      size of the data in the image (default 512)
#
# The image is kept in ~/.cache/spindle/demo for the next run.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
mebibytes=${1:-512}
[[ $mebibytes =~ ^[1-9][0-9]*$ ]] || { echo "usage: scripts/demo.sh [MEBIBYTES]" >&2; exit 2; }
folder=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/spindle/demo
image=$folder/programs-$mebibytes.qcow2

scripts/setup.sh
bazel build -c opt --noshow_progress --show_result=0 //tools:spindle-img

if [[ ! -f $image ]]; then
  echo "demo: filling $image with up to $mebibytes MiB of this machine's programs and libraries"
  mkdir -p "$folder"
  scratch=$(mktemp -d "$folder/making.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  # tar stops with SIGPIPE when head has had enough; that is no error here.
  { tar -C / --ignore-failed-read -cf - usr/bin usr/lib 2>/dev/null || true; } |
    head -c "${mebibytes}M" >"$scratch/data.raw"
  truncate --size=%512 "$scratch/data.raw"
  qemu-img convert -f raw -O qcow2 "$scratch/data.raw" "$scratch/image.qcow2"
  mv "$scratch/image.qcow2" "$image"
  rm -rf "$scratch"
fi
qemu-img info "$image" | sed -n 's/^/demo: /; /^demo: \(file format\|virtual size\|disk size\)/p'

exec "$(bazel info -c opt bazel-bin 2>/dev/null)/tools/spindle-img" bench --sweep "$image"

#!/usr/bin/env bash
# Prepares a Debian 12 machine (or container) to build and test Spindle.
#
# Installs the packages that are missing, and, where the archives that WORKSPACE
# names cannot be fetched, unpacks the same versions from Debian source packages
# and writes .bazelrc.local, which points Bazel at them. Safe to run again: a
# second run changes nothing and takes a second or two.
#
#   scripts/setup.sh             do what is missing
#
# SPINDLE_SOURCES=upstream|debian chooses where the four C++ packages come from
# instead of probing. XDG_CACHE_HOME moves the cache from ~/.cache.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/spindle
rc=$root/.bazelrc.local
export DEBIAN_FRONTEND=noninteractive

packages=(
  # Build.
  bazel-bootstrap bazel-platforms bazel-rules-java bazel-rules-proto bazel-skylib
  clang-19 clang-format-19 clang-tidy-19 g++-12 libclang-rt-19-dev lld-19 llvm-19
  # Libraries.
  libcairo2-dev libcli11-dev libedit-dev libgcrypt20-dev libzstd-dev nlohmann-json3-dev zlib1g-dev
  # A font for pictures, and what checks manual pages.
  fonts-dejavu-core groff-base
  # Independent judges of our images, and load generators.
  cryptsetup-bin fio libnbd-bin libqcow-utils nbdkit qemu-utils
  # The scripts themselves.
  ca-certificates curl dpkg-dev git python3 xz-utils
)

# Where the four C++ packages stand in Debian. Bazel's name for the repository,
# Debian's source package, the original archive and its SHA-256. googletest's
# and benchmark's are the upstream files; the others were repacked by Debian.
sources=(
  "com_google_absl abseil abseil_20220623.1.orig.tar.gz abfe2897f3a30edaa74bc34365afe3c2a3cd012091a97dc7e008f7016adcd5fe"
  "oneTBB onetbb onetbb_2021.8.0.orig.tar.xz 7e9111b8bb59c8800bf6d0b06afe7b0891937443d2dae1ee1101c8e2ede6a7ef"
  "com_google_googletest googletest googletest_1.12.1.orig.tar.gz 81964fe578e9bd7c94dfdb09c8e4d6e6759e19967e397dbea48d1c10e45d0df2"
  "com_github_google_benchmark benchmark benchmark_1.7.1.orig.tar.gz 6430e4092653380d9dc4ccb45a1e2dc9259d581f4866dc0759713126056bc1d7"
)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

scratch=
cleanup() { if [[ -n $scratch ]]; then rm -rf "$scratch"; fi; }
trap cleanup EXIT

as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo --preserve-env=DEBIAN_FRONTEND "$@"
  else
    die "packages are missing; run this as root, or install sudo"
  fi
}

install_packages() {
  local installed missing=() package
  installed=" $(dpkg-query -W -f '${Package}:${db:Status-Status} ' 2>/dev/null) "
  for package in "${packages[@]}"; do
    [[ $installed == *" $package:installed "* ]] || missing+=("$package")
  done
  if [[ ${#missing[@]} -eq 0 ]]; then
    say "all ${#packages[@]} Debian packages are installed"
    return
  fi
  say "installing ${missing[*]}"
  # A foreign source that does not answer must not stop us; a package that is
  # really missing will, just below.
  as_root apt-get update -qq || say "apt-get update reported errors; going on"
  as_root apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# True where the archives that WORKSPACE names can be fetched.
upstream_in_reach() {
  local url
  url=$(grep -o 'https://[^"]*\.tar\.gz' "$root/WORKSPACE" | head -n 1)
  curl --silent --head --location --fail --connect-timeout 3 --max-time 8 \
    --output /dev/null "$url"
}

# Prints deb-src lines that mirror the machine's own deb entries for Debian
# itself (suites named after this release), in either format of sources file.
deb_src_lines() {
  local release file
  release=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:?}")
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    if [[ -r $file ]]; then awk -v release="$release" '
      $1 == "deb" || $1 == "deb-src" {
        line = $0; sub(/#.*/, "", line); sub(/^[ \t]*deb(-src)?[ \t]+/, "", line)
        options = ""
        if (match(line, /^\[[^]]*\][ \t]*/)) {
          options = substr(line, 1, RLENGTH); line = substr(line, RLENGTH + 1)
          gsub(/arch=[^] \t]*/, "", options)
          if (options !~ /=/) options = ""
        }
        split(line, field, /[ \t]+/)
        if (index(field[2], release) == 1) print "deb-src " options line
      }' "$file"
    fi
  done
  for file in /etc/apt/sources.list.d/*.sources; do
    if [[ -r $file ]]; then awk -v release="$release" '
      function finish(   u, s, i, j, option) {
        if (tolower(value["enabled"]) != "no" && value["types"] ~ /(^| )deb(-src)?( |$)/) {
          option = value["signed-by"] ~ /^\/[^ ]*$/ ? "[signed-by=" value["signed-by"] "] " : ""
          if (tolower(value["trusted"]) == "yes") option = "[trusted=yes] "
          split(value["uris"], u, " "); split(value["suites"], s, " ")
          for (i in u) for (j in s)
            if (index(s[j], release) == 1) print "deb-src " option u[i] " " s[j] " " value["components"]
        }
        delete value; key = ""
      }
      /^#/ { next }
      /^[ \t]*$/ { finish(); next }
      /^[ \t]/ { line = $0; gsub(/^[ \t]+|[ \t\r]+$/, "", line); value[key] = value[key] " " line; next }
      {
        colon = index($0, ":"); key = tolower(substr($0, 1, colon - 1))
        line = substr($0, colon + 1); gsub(/^[ \t]+|[ \t\r]+$/, "", line); value[key] = line
      }
      END { finish() }' "$file"
    fi
  done | sort -u
}

# Downloads the source packages "$@" into the current folder with an apt that
# has its own lists and sources; nothing under /etc/apt or /var/lib/apt changes.
fetch_source_packages() {
  local apt=$scratch/apt
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  deb_src_lines >"$apt/sources.list"
  [[ -s $apt/sources.list ]] || die "found no Debian entry in /etc/apt to derive deb-src from"
  local options=(
    -qq
    -o "Dir::Etc::sourcelist=$apt/sources.list"
    -o "Dir::Etc::sourceparts=/dev/null"
    -o "Dir::State::lists=$apt/lists"
    -o "Dir::Cache=$apt/cache"
    -o "APT::Sandbox::User=$(id -un)"
    -o "Acquire::Retries=3"
  )
  apt-get "${options[@]}" update || say "apt-get update reported errors; going on"
  apt-get "${options[@]}" source --download-only "$@"
}

unpack_debian_sources() {
  local wanted=() entry name package archive sum
  for entry in "${sources[@]}"; do
    read -r name package archive sum <<<"$entry"
    [[ -f $cache/src/$name-${sum:0:12}/.complete ]] || wanted+=("$package")
  done
  if [[ ${#wanted[@]} -eq 0 ]]; then
    say "the four C++ packages are unpacked in $cache/src"
    return
  fi
  say "fetching Debian source packages: ${wanted[*]}"
  mkdir -p "$cache/src"
  scratch=$(mktemp -d)
  mkdir "$scratch/download"
  (cd "$scratch/download" && fetch_source_packages "${wanted[@]}")
  for entry in "${sources[@]}"; do
    read -r name package archive sum <<<"$entry"
    local tree=$cache/src/$name-${sum:0:12}
    [[ -f $tree/.complete ]] && continue
    printf '%s  %s\n' "$sum" "$scratch/download/$archive" | sha256sum --check --quiet \
      || die "$archive is not the version that Spindle builds with"
    rm -rf "$tree" "$tree.part"
    mkdir "$tree.part"
    tar -xf "$scratch/download/$archive" -C "$tree.part" --strip-components=1 --no-same-owner
    [[ -f $tree.part/WORKSPACE || -f $tree.part/WORKSPACE.bazel ]] \
      || printf 'workspace(name = "%s")\n' "$name" >"$tree.part/WORKSPACE"
    touch "$tree.part/.complete"
    mv "$tree.part" "$tree"
    say "unpacked $archive"
  done
}

# Writes the rc file on stdin, unless it stands there already (so that Bazel
# sees no new options and keeps what it has analysed).
write_rc() {
  local text
  text=$(cat)
  if [[ -f $rc && $(<"$rc") == "$text" ]]; then
    say "$(basename "$rc") is up to date"
  else
    printf '%s\n' "$text" >"$rc"
    say "wrote $(basename "$rc")"
  fi
}

choose_sources() {
  local choice=${SPINDLE_SOURCES:-}
  # A choice once made stands until the file is deleted.
  if [[ -z $choice && -f $rc ]]; then
    choice=$(sed -n 's/^# sources: //p' "$rc")
  fi
  if [[ -z $choice ]]; then
    if upstream_in_reach; then choice=upstream; else choice=debian; fi
    say "sources of the four C++ packages: $choice"
  fi
  [[ $choice == upstream || $choice == debian ]] || die "SPINDLE_SOURCES must be upstream or debian"
  printf -v "$1" '%s' "$choice"
}

install_packages
choose_sources from
[[ $from == upstream ]] || unpack_debian_sources
mkdir -p "$cache/disk-cache"
{
  printf '# Written by scripts/setup.sh; delete it and run that again to start over.\n'
  printf '# sources: %s\n' "$from"
  printf 'build --disk_cache=%s\n' "$cache/disk-cache"
  if [[ $from == debian ]]; then
    for entry in "${sources[@]}"; do
      read -r name _ _ sum <<<"$entry"
      printf 'common --override_repository=%s=%s\n' "$name" "$cache/src/$name-${sum:0:12}"
    done
  fi
} | write_rc
say "ready"

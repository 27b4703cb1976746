#!/usr/bin/env bash
# Checks the format and runs clang-tidy over our own files.
#
#   scripts/lint.sh format [FILE...]     clang-format would change nothing
#   scripts/lint.sh fix    [FILE...]     let clang-format change it
#   scripts/lint.sh tidy   [FILE...]     clang-tidy finds nothing
#   scripts/lint.sh                      format, then tidy
#
# Without files: all that git knows or would add. clang-tidy reads each header as
# a file of its own, which also proves that it includes what it needs. It is slow,
# so a file that was clean is skipped until it, a header that it includes, the
# flags or .clang-tidy change (stamps lie in ~/.cache/spindle/tidy).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamps=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/spindle/tidy
jobs=$(nproc)

# sources SUFFIX-PATTERN FILE...: the files, or all of ours.
sources() {
  local pattern=$1
  shift
  if [[ $# -gt 0 ]]; then
    printf '%s\n' "$@"
  else
    git ls-files --cached --others --exclude-standard -- '*.h' '*.cc' '*.c'
  fi | while IFS= read -r file; do
    # A file that stands in the index may be gone from the tree.
    if [[ -f $file && $file =~ $pattern && $file != */testdata/* ]]; then printf '%s\n' "$file"; fi
  done
}

format() {
  local option=$1
  shift
  sources '\.(h|cc|c)$' "$@" | xargs -r -d '\n' clang-format-19 "$option" -Werror
}

# Checks one file.
tidy_one() {
  local file=$1 log stamp
  local key
  key=$({ clang-tidy-19 --version; cat .clang-tidy tests/.clang-tidy; printf '%s\n' "${tidy_flags[@]}"
          clang++-19 -MM "${tidy_flags[@]}" "$file" | tr -d '\\' | tr ' ' '\n' | grep -E '\.(h|cc|c)$' \
            | sort -u | xargs sha256sum; } 2>/dev/null | sha256sum | cut -c1-40)
  stamp=$stamps/$key
  [[ -f $stamp ]] && return 0
  log=$(mktemp)
  if clang-tidy-19 --quiet "$file" -- "${tidy_flags[@]}" >"$log" 2>&1; then
    touch "$stamp"
    rm -f "$log"
  else
    grep -vE '^[0-9]+ (warnings?|errors?) (and|generated|treated)|^Error while processing|^Suppressed|^Use -header-filter' "$log" >&2
    rm -f "$log"
    return 1
  fi
}

# The flags of the build, with other people's headers as system headers.
load_tidy_flags() {
  local external
  external=$(bazel info --noshow_progress output_base 2>/dev/null)/external
  if [[ ! -d $external/com_google_absl ]]; then
    # Bazel fetches a repository when something first needs it.
    bazel build --nobuild --noshow_progress @com_google_absl//absl/base @oneTBB//:tbb \
      @com_google_googletest//:gtest @com_github_google_benchmark//:benchmark >/dev/null 2>&1 || true
  fi
  tidy_flags=(
    -std=c++20 -xc++ -iquote . -Wall -Wextra -Wthread-safety -Wthread-safety-beta
    -isystem "$external/com_google_absl"
    -isystem "$external/com_github_google_benchmark/include"
    -isystem "$external/com_google_googletest/googlemock/include"
    -isystem "$external/com_google_googletest/googletest/include"
    -isystem "$external/oneTBB/include"
    -D__TBB_NO_IMPLICIT_LINKAGE
  )
}

case ${1:-} in
  "") "$0" format && exec "$0" tidy ;;
  format) format --dry-run "${@:2}" ;;
  fix) format -i "${@:2}" ;;
  tidy)
    load_tidy_flags
    mkdir -p "$stamps"
    sources '\.(h|cc)$' "${@:2}" | xargs -r -d '\n' -n 1 -P "$jobs" "$0" tidy-one "${#tidy_flags[@]}" "${tidy_flags[@]}"
    ;;
  tidy-one)
    # Internal: COUNT FLAG... FILE
    tidy_flags=("${@:3:$2}")
    tidy_one "${@:3+$2:1}"
    ;;
  *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

#!/bin/bash
# Compiles each source twice: as it is, which must succeed, and with the rule in
# it broken, which must fail with the thread safety diagnostic that its first
# line expects, and with nothing else.
#
# usage: check_lock_rules.sh source...
set -u

compiler=${SPINDLE_CLANG:-clang-19}
flags=(-std=c++20 -fsyntax-only -Wall -Wextra -Wthread-safety
  -Wthread-safety-beta -Werror -iquote . -isystem ../com_google_absl)
failed=0

fail() {
  echo "FAILED $1: $2"
  failed=1
}

check() {
  local source=$1 expected output errors
  expected=$(sed -n '1s,^// EXPECT: ,,p' "$source")
  if [[ -z $expected ]]; then
    fail "$source" "its first line expects nothing"
    return
  fi
  if ! output=$("$compiler" "${flags[@]}" "$source" 2>&1); then
    fail "$source" "does not compile even where no rule is broken:
$output"
    return
  fi
  if output=$("$compiler" "${flags[@]}" -DSPINDLE_BREAK_THE_RULE "$source" 2>&1); then
    fail "$source" "compiles although it breaks a rule"
    return
  fi
  errors=$(grep ' error: ' <<<"$output")
  if ! grep -qF -- "$expected" <<<"$errors"; then
    fail "$source" "fails, but not for the expected reason:
$output"
  elif grep -v -- '-Wthread-safety' <<<"$errors"; then
    fail "$source" "fails for other reasons, too"
  else
    echo "ok     $source"
  fi
}

if [[ $# -eq 0 ]]; then
  echo "no sources given"
  exit 1
fi
for source in "$@"; do
  check "$source"
done
exit "$failed"

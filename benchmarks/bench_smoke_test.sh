#!/bin/bash
# Runs the benchmark given, with the arguments that follow, at a tiny size: it
# must succeed and report no error. How fast it is does not matter here.
set -u

binary=$1
shift
output=$("$binary" "$@" 2>&1)
status=$?
printf '%s\n' "$output"
if [[ $status -ne 0 ]]; then
  echo "FAILED: exit code $status"
  exit 1
fi
if grep -q 'ERROR OCCURRED' <<<"$output"; then
  echo "FAILED: a benchmark reported an error"
  exit 1
fi

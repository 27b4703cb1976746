#!/usr/bin/env bash
# Runs the libFuzzer targets of tests/fuzz, with ASan and UBSan.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]   each target so long (60; all of them)
#   scripts/fuzz.sh keep                    adds what earlier runs found to the
#                                           committed corpus, as little as covers
#                                           the same
#
# Inputs are kept in .spindle/fuzz/, those that break a target in
# .spindle/fuzz/TARGET-found/. Two targets run at a time. Prints executions and
# coverage of each; the exit code is zero if none found anything.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

all=(header_fuzzer tables_fuzzer snapshots_fuzzer bitmaps_fuzzer compressed_fuzzer image_fuzzer
  luks_fuzzer encryption_fuzzer qcow_fuzzer vdi_fuzzer)
what=${1:-60}
shift || true
targets=("${@:-${all[@]}}")
work=$PWD/.spindle/fuzz
corpus=$PWD/tests/fuzz/corpus

# What one input may take.
limits=(-rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=30)
export ASAN_OPTIONS=malloc_context_size=3:quarantine_size_mb=16:external_symbolizer_path=/usr/bin/llvm-symbolizer-19
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:external_symbolizer_path=/usr/bin/llvm-symbolizer-19

bazel build --config=fuzz --noshow_progress --show_result=0 "${targets[@]/#///tests/fuzz:}" || exit 1
binaries=$(bazel info --config=fuzz bazel-bin 2>/dev/null)/tests/fuzz

if [[ $what == keep ]]; then
  for target in "${targets[@]}"; do
    mkdir -p "$work/$target" "$work/$target-kept"
    rm -f "$work/$target-kept"/*
    # Large inputs say little more, and each one is in the repository for good.
    "$binaries/$target" -set_cover_merge=1 -max_len=8192 "${limits[@]}" \
      "$work/$target-kept" "$corpus/$target" "$work/$target" >"$work/$target.log" 2>&1 || exit 1
    find "$corpus/$target" -type f ! -name 'seed-*' -delete
    cp "$work/$target-kept"/* "$corpus/$target"/
    echo "$target: $(find "$corpus/$target" -type f | wc -l) inputs"
  done
  exit 0
fi

fuzz() {
  local target=$1 log=$work/$1.log
  mkdir -p "$work/$target" "$work/$target-found"
  if "$binaries/$target" "-max_total_time=$what" "${limits[@]}" -print_final_stats=1 \
    -dict=tests/fuzz/qcow2.dict "-artifact_prefix=$work/$target-found/" \
    "$work/$target" "$corpus/$target" >"$log" 2>&1; then
    printf '%-18s %10s executions %8s a second, %s\n' "$target" \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
      "$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")" \
      "$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -1)"
    return 0
  fi
  tail -60 "$log"
  echo "$target: FAILED, see $work/$target-found"
  return 1
}

failed=0
running=0
for target in "${targets[@]}"; do
  fuzz "$target" &
  running=$((running + 1))
  if [[ $running -eq 2 ]]; then
    wait -n || failed=1
    running=1
  fi
done
while [[ $running -gt 0 ]]; do
  wait -n || failed=1
  running=$((running - 1))
done
exit "$failed"

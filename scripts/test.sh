#!/usr/bin/env bash
# Runs every test in every configuration, and the format check.
#
#   scripts/test.sh                      all of them (an hour on two cores, if
#                                        nothing has been built)
#   scripts/test.sh tsan format          only these
#
# Configurations: default, notbb, tsan, sanitize (ASan and UBSan together), fuzz
# (each libFuzzer target for a minute), gcc, format; and, when it is named, tidy
# (clang-tidy). What is not the default is bounded: tests tagged "default-only" run
# there alone, ThreadSanitizer has the tests of engine, pool and formats, and the
# stress test, and g++ compiles all that ships, and runs the tests of engine and
# pool.
# SPINDLE_LONG=1 runs all tests everywhere, and the long versions too (tests
# tagged "manual", and more iterations wherever a test reads that variable; 30
# minutes of each fuzzer).
#
# Goes on after a failure. The last line is "N passed, N failed", counted in test
# cases over all configurations; the exit code is zero if none failed.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

all=(default notbb tsan sanitize fuzz gcc format)
chosen=("${@:-${all[@]}}")
passed=0 failed=0 skipped=0
table=()
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { printf '\n=== %s\n' "$*"; }

# add NAME SECONDS PASSED FAILED SKIPPED
add() {
  passed=$((passed + $3)) failed=$((failed + $4)) skipped=$((skipped + $5))
  table+=("$(printf '%-10s %6d passed %4d failed %4d skipped %5d s' "$1" "$3" "$4" "$5" "$2")")
}

# run_bazel NAME FLAG...: builds and tests everything with these flags.
run_bazel() {
  local name=$1 start=$SECONDS status counts targets=(//...)
  shift
  if [[ ${SPINDLE_LONG:-0} != 0 ]]; then
    if [[ $name == gcc || $name == notbb ]]; then set -- "$@" --test_tag_filters=-tsan-long; fi
    # Wildcards leave the "manual" ones out; a query names them. Not for notbb,
    # where naming a target that needs threads would be an error.
    if [[ $name != notbb ]]; then
      mapfile -t -O 1 targets < <(bazel query --noshow_progress 'attr(tags, "\bmanual\b", tests(//...))' 2>/dev/null)
    fi
  elif [[ $name == gcc ]]; then
    targets=(//... -//tests/... //tests/engine/... //tests/threadpool/...)
  elif [[ $name == tsan ]]; then
    targets=(//tests/engine/... //tests/threadpool/... //tests/formats/... //tests/stress/...)
  fi
  say "$name: bazel test${*:+ $*} ${targets[*]:0:4}"
  bazel test "$@" --keep_going --noshow_progress --show_result=0 \
    --build_event_json_file="$scratch/$name.json" -- "${targets[@]}"
  status=$?
  counts=$(scripts/count_results.py "$scratch/$name.json") || counts="0 1 0"
  read -r -a counts <<<"$counts"
  # The build failed, or there was nothing to run: that is a failure as well.
  if [[ $status -ne 0 && ${counts[1]} -eq 0 ]]; then counts[1]=1; fi
  add "$name" $((SECONDS - start)) "${counts[@]}"
}

# run_check NAME COMMAND...: a check that counts as one case.
run_check() {
  local name=$1 start=$SECONDS
  shift
  say "$name: $*"
  if "$@"; then add "$name" $((SECONDS - start)) 1 0 0; else add "$name" $((SECONDS - start)) 0 1 0; fi
}

say "setup"
if ! scripts/setup.sh; then
  echo "0 passed, 1 failed"
  exit 1
fi

for configuration in "${chosen[@]}"; do
  case $configuration in
    default) run_bazel default ;;
    tsan | sanitize | asan | ubsan | gcc | notbb) run_bazel "$configuration" "--config=$configuration" ;;
    fuzz)
      seconds=60
      if [[ ${SPINDLE_LONG:-0} != 0 ]]; then seconds=1800; fi
      run_check fuzz scripts/fuzz.sh "$seconds"
      ;;
    format | tidy) run_check "$configuration" scripts/lint.sh "$configuration" ;;
    *)
      echo "test.sh: no configuration named $configuration (there are: ${all[*]} tidy)" >&2
      failed=$((failed + 1))
      ;;
  esac
done

say "summary ($SECONDS s, $skipped skipped)"
printf '%s\n' "${table[@]}"
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]

#!/usr/bin/env bash
# Fuzzes with libFuzzer and AddressSanitizer, on the nightly toolchain: each target for SECONDS, from the corpus in the
# repository. What is found stays in the folder that is named at the end.
#
#   ci/fuzz.sh SECONDS [TARGET...]
#
# As in ci/asan.sh what is free is poisoned inside spans and large objects too, so that a stray access is reported where it
# happens; the targets verify contents besides. `cargo fuzz run TARGET` does the same without the poison where cargo-fuzz is
# installed.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?how many seconds for each target?}
shift
targets=${*:-allocator tree text protocol}
work=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
export CARGO_TARGET_DIR=$work
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
# What cargo-fuzz passes, too: coverage for the engine, and the sanitizer.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address --cfg memcg_asan -Ccodegen-units=1"
# jemalloc uninstrumented, and without thread caches: why, is in ci/asan.sh.
export CFLAGS_x86_64_unknown_linux_gnu="-fno-sanitize=address ${CFLAGS_x86_64_unknown_linux_gnu:-}"
export _RJEM_MALLOC_CONF="tcache:false"
cargo +nightly build --release --manifest-path fuzz/Cargo.toml --target "$host"

failed=0
TIMEFORMAT='%U s of CPU, %S s in the kernel, %R s in all'
for target in $targets; do
  mkdir -p "$work/corpus/$target" "$work/found/$target"
  echo "== fuzz: $target, $seconds s"
  # Leaks are not looked for: what is cached for reuse is none.
  time if ! ASAN_OPTIONS=detect_leaks=0 "$work/$host/release/$target" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=4096 \
    -max_len=2048 -artifact_prefix="$work/found/$target/" -print_final_stats=1 -verbosity=1 \
    "$work/corpus/$target" "fuzz/corpus/$target" >"$work/$target.log" 2>&1; then
    failed=$((failed + 1))
    tail -n 60 "$work/$target.log"
  fi
  grep -E '^stat::(number_of_executed_units|average_exec|peak_rss)|Done ' "$work/$target.log" || true
done
[ "$failed" -eq 0 ] || echo "$failed targets found something: $work/found"
[ "$failed" -eq 0 ]

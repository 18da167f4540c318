#!/usr/bin/env bash
# The tests of memcg under AddressSanitizer, on the nightly toolchain. Objects that are free in magazines and spans, what lies
# between an object's end and its class's, and freed large objects are poisoned (alloc/src/asan.rs); seeded uses of them
# must be reported (alloc/tests/asan.rs).
#
#   ci/asan.sh [--test TEST | --lib]...        all that can run, or those
set -euo pipefail
cd "$(dirname "$0")/.."

rustc +nightly --version >/dev/null 2>&1 || {
  echo "no nightly toolchain: rustup toolchain install nightly" >&2
  exit 1
}
host=x86_64-unknown-linux-gnu

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/asan
export RUSTFLAGS="-Zsanitizer=address --cfg memcg_asan ${RUSTFLAGS:-}"
# jemalloc stays as it is: it would be compiled for the sanitizer with the flag above, which takes minutes and finds nothing of ours.
export CFLAGS_x86_64_unknown_linux_gnu="-fno-sanitize=address ${CFLAGS_x86_64_unknown_linux_gnu:-}"
# Leaks are not looked for: LeakSanitizer knows what the sanitizer's own malloc handed out, and Rust's memory is memcg's here.
export ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS:-}"

# jemalloc takes its thread caches, which nothing here needs, from pages that were ours, are poisoned still, and that it zeroes with
# the `memset` that the sanitizer watches.
export _RJEM_MALLOC_CONF="tcache:false"

# What cannot run: limits on address space leave no room for the shadow, which takes terabytes of it.
SKIP='system_oom'
# What need not pass: a run in which each of 64 threads can be stopped within 100 ms does not come about where all is
# several times slower.
SLOW='sixty_four_threads_fill_a_group_to_the_brim'

tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
  tests=(--lib)
  for file in alloc/tests/*.rs alloc/tests/*/main.rs; do
    name=${file#alloc/tests/}
    name=${name%/main.rs}
    name=${name%.rs}
    case " $SKIP " in *" $name "*) ;; *) tests+=(--test "$name") ;; esac
  done
fi
cargo +nightly test -p memcg --target "$host" --no-fail-fast "${tests[@]}" -- --skip "$SLOW"

#!/usr/bin/env bash
# Other people's programs: builds well-known crates with their own test suites, runs those on the system's allocator and on
# memcg, everything inside a limited group, and compares how each test ended.
#
#   ci/ecosystem.sh            all of them
#   ci/ecosystem.sh --quick    a few, in minutes
#   ci/ecosystem.sh NAME...    those
#
# A test program is built once: which allocator serves is chosen when it starts (ci/ecosystem/src/lib.rs). A crate whose
# tests differ is run once more on both, for some tests depend on time. Ends with "N passed, M failed", in crates.
set -uo pipefail
cd "$(dirname "$0")/.."
here=$PWD

# name, version, what `cargo test` is told. Only crates whose packages carry their tests.
CRATES='
bytes               1.10.1   --lib --tests
hashbrown           0.15.5   --lib --tests
crossbeam-channel   0.5.15   --lib --tests
crossbeam-epoch     0.9.18   --lib
crossbeam-deque     0.8.6    --lib --tests
crossbeam-skiplist  0.1.3    --lib --tests
dashmap             6.1.0    --lib
regex               1.11.1   --lib --tests
serde_json          1.0.140  --lib --tests
tokio               1.45.0   --features full,test-util --test rt_threaded --test rt_basic --test sync_mpsc --test task_join_set --test io_copy --test sync_broadcast --test task_local
rayon               1.10.0   --lib --tests
moka                0.12.10  --lib --features sync
im                  15.1.0   --lib
roaring             0.10.12  --lib --tests
flate2              1.1.1    --lib --tests --no-default-features --features zlib
bzip2               0.5.2    --lib --tests
rusqlite            0.35.0   --lib --features bundled
smallvec            1.15.0   --lib
indexmap            2.9.0    --lib --tests
arc-swap            1.7.1    --lib
'
QUICK='bytes hashbrown smallvec crossbeam-deque flate2'

work=${ECOSYSTEM_DIR:-${CARGO_TARGET_DIR:-$here/target}/ecosystem}
export CARGO_TARGET_DIR=$work/target
export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0
# With assertions as in any test, but optimised a little: some suites would take a quarter of an hour.
export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_TEST_OPT_LEVEL=1
export RUSTFLAGS="--cap-lints warn ${RUSTFLAGS:-}"
# Seconds that one suite may take on one allocator.
LONGEST=${ECOSYSTEM_SECONDS:-900}
mkdir -p "$work/src" "$work/out"

wanted=${*:-all}
[ "$wanted" = --quick ] && wanted=$QUICK

# Has cargo fetch NAME VERSION, and answers where its source is.
source_of() {
  local fetch=$work/fetch
  mkdir -p "$fetch/src"
  : >"$fetch/src/lib.rs"
  printf '[package]\nname = "fetch"\nedition = "2021"\n[dependencies]\n"%s" = "=%s"\n[workspace]\n' "$1" "$2" >"$fetch/Cargo.toml"
  rm -f "$fetch/Cargo.lock"
  cargo fetch --quiet --manifest-path "$fetch/Cargo.toml" &&
    cargo metadata --format-version 1 --manifest-path "$fetch/Cargo.toml" |
    grep -o "\"manifest_path\":\"[^\"]*/$1-$2/Cargo.toml\"" | head -n 1 | sed 's/.*":"\(.*\)\/Cargo.toml"/\1/'
}

# Copies the crate, and links the allocator into its unit tests and each of its test programs.
prepare() {
  local name=$1 from=$2 to=$work/src/$1 file
  rm -rf "$to"
  cp -r "$from" "$to" && chmod -R u+w "$to" || return 1
  # Which toolchain and which versions are those of this run.
  rm -f "$to/Cargo.lock" "$to"/rust-toolchain*
  grep -q '^\[workspace\]' "$to/Cargo.toml" || printf '\n[workspace]\n' >>"$to/Cargo.toml"
  printf '\n[dev-dependencies.ecosystem-allocator]\npath = "%s/ci/ecosystem"\n' "$here" >>"$to/Cargo.toml"
  printf '\n#[cfg(test)]\nextern crate ecosystem_allocator as _;\n' >>"$to/src/lib.rs"
  for file in "$to"/tests/*.rs "$to"/tests/*/main.rs; do
    # One that brings an allocator of its own is left as it is.
    [ -f "$file" ] && ! grep -q global_allocator "$file" && printf '\nextern crate ecosystem_allocator as _;\n' >>"$file"
  done
  return 0
}

# Runs the suite of NAME on ALLOCATOR; one line for each test in $work/out/NAME.ALLOCATOR.
suite() {
  local name=$1 allocator=$2 log=$work/out/$1.$2.log
  shift 2
  rm -f "$work/out/$name.peaks"
  (cd "$work/src/$name" && ECOSYSTEM_ALLOCATOR=$allocator ECOSYSTEM_LOG=$work/out/$name.peaks RUST_BACKTRACE=0 \
    timeout "$LONGEST" cargo test --no-fail-fast "$@") >"$log" 2>&1 </dev/null
  local status=$?
  # The program that a test is of, for names repeat; a program that died shows as such.
  awk '/^ +Running /{program = ($2 == "unittests") ? $3 : $2}
       /^test .* \.\.\. /{sub(/ <.*>$/, ""); print program, $0}
       /process didn.t exit successfully/ && /signal/{print program, "died:", $0}' "$log" |
    sed -E 's#\(signal: ([0-9]+).*#signal \1#; s#`[^`]*`##' | sort >"$work/out/$name.$allocator"
  [ $status -ne 124 ] || echo "timed out" >>"$work/out/$name.$allocator"
}

passed=0
failed=0
printf '%-20s %-9s %7s %7s %8s %10s  %s\n' crate version tests failing programs 'peak KiB' result
while read -r name version flags; do
  [ -n "$name" ] || continue
  case " $wanted " in *" all "* | *" $name "*) ;; *) continue ;; esac
  from=$(source_of "$name" "$version")
  row() { printf '%-20s %-9s %7s %7s %8s %10s  %s\n' "$name" "$version" "$@"; }
  if [ -z "$from" ] || ! prepare "$name" "$from"; then
    row - - - - 'could not be fetched'
    failed=$((failed + 1))
    continue
  fi
  # shellcheck disable=SC2086 # the flags are words
  if ! (cd "$work/src/$name" && cargo test --no-run $flags) >"$work/out/$name.build" 2>&1 </dev/null; then
    row - - - - "does not build: $work/out/$name.build"
    failed=$((failed + 1))
    continue
  fi
  for _ in 1 2; do
    # shellcheck disable=SC2086 # as above
    suite "$name" system $flags
    # shellcheck disable=SC2086 # as above
    suite "$name" memcg $flags
    diff -q "$work/out/$name.system" "$work/out/$name.memcg" >/dev/null && break
  done
  tests=$(grep -c ' test ' "$work/out/$name.memcg")
  failing=$(grep -c 'FAILED$' "$work/out/$name.memcg")
  programs=$(grep -c . "$work/out/$name.peaks" 2>/dev/null || true)
  peak=$(sort -n "$work/out/$name.peaks" 2>/dev/null | tail -n 1)
  if ! diff "$work/out/$name.system" "$work/out/$name.memcg" >"$work/out/$name.diff"; then
    row "$tests" "$failing" "${programs:-0}" "$((${peak:-0} >> 10))" 'DIFFERENT'
    sed 's/^/    /' "$work/out/$name.diff"
    failed=$((failed + 1))
  elif [ "$tests" -eq 0 ] || [ "${peak:-0}" -eq 0 ]; then
    row "$tests" "$failing" "${programs:-0}" "${peak:-0}" 'NOTHING RAN ON MEMCG'
    failed=$((failed + 1))
  else
    row "$tests" "$failing" "$programs" "$((peak >> 10))" 'no difference'
    passed=$((passed + 1))
  fi
done <<<"$CRATES"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

#!/usr/bin/env bash
# Test programs of memcg under valgrind's memcheck, in a debug build, where little is inlined: it must report nothing.
#
#   ci/valgrind.sh [--test TEST | --lib]...
#
# To valgrind all memory is mappings of jemalloc's, there and initialised. So it finds accesses outside of them, decisions on what was never
# written on a stack, and system calls with wrong arguments; uses of free objects are ci/asan.sh's to find. It runs one thread
# at a time, 20 to 50 times slower: tests about time are not for it.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || {
  echo "no valgrind: install the package of that name (apt-get install valgrind)" >&2
  exit 1
}

tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(--test groups --test object_cache --test unused)
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
# Leaks are not looked for: nothing comes from the `malloc` that valgrind watches.
export "CARGO_TARGET_${host}_RUNNER=valgrind --tool=memcheck --quiet --error-exitcode=99 --leak-check=no"
cargo test -p memcg "${tests[@]}" -- --test-threads=1

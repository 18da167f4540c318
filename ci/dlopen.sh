#!/usr/bin/env bash
# A program that does not use memcg loads a library that does (the feature `dlopen`), calls it from old and new threads and in
# the child of a fork, and closes it.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${CARGO_TARGET_DIR:-$PWD/target}/dlopen
CARGO_TARGET_DIR=$work cargo build --manifest-path ci/dlopen/Cargo.toml
timeout 120 "$work/debug/dlopen-host" "$work/debug/libdlopen_plugin.so"

#!/usr/bin/env bash
# The builds that are there to measure: without accounting, and counting atomics and locks. That they do
# what they say; the figures are benches/README.md's.
set -euo pipefail
cd "$(dirname "$0")/.."

# Its own target folder, so that the flags do not throw away other builds.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/measuring"

RUSTFLAGS="--cfg memcg_unaccounted --cfg memcg_counting ${RUSTFLAGS:-}"
export RUSTFLAGS
cargo test --package memcg-accounting --lib counting
cargo test --package memcg --test unaccounted

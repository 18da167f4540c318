#!/usr/bin/env bash
# Format, lints and documentation, with warnings denied.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
cargo clippy --workspace --all-targets --features memcg/stream --locked -- -D warnings
cargo clippy -p memcg --all-targets --features debug-checks,hardened --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --features memcg/stream --locked

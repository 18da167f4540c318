#!/usr/bin/env bash
# Instructions of one operation, by callgrind: repeatable where times are not.
#
#     benches/callgrind.sh [WORKLOAD...]      default: pair.64 batch.fifo.64 batch.random.64
#     MEMCG_FEATURES=memcg/hardened benches/callgrind.sh [WORKLOAD...]
#
# The difference between a run of 1 turn and one of 11, by the operations in between. The harness's own
# loop is in it, about 20 instructions, the same for everyone.
set -euo pipefail
cd "$(dirname "$0")/.."

workloads=("$@")
[ $# -gt 0 ] || workloads=(pair.64 batch.fifo.64 batch.random.64)

# As `compare` builds them: the peers without memcg, whose jemalloc keeps statistics.
cargo build --quiet --release -p memcg-benches --no-default-features --features peers --bins
ours=(--quiet --release -p memcg-benches --no-default-features --features "ours ${MEMCG_FEATURES:-}" 
    --bin on-memcg --bin on-memcg-alone --bin on-memcg-tenants)
cargo build "${ours[@]}"
target=${CARGO_TARGET_DIR:-target}
# The same with accounting compiled out, where `compare` has it.
RUSTFLAGS="${RUSTFLAGS:-} --cfg memcg_unaccounted" cargo build "${ours[@]}" --target-dir "$target/unaccounted"
bin=$target/release
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# turns binary workload state: "instructions operations"
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null \
        "$2" --workload "$3" --scale tiny --state "$4" --turns "$1" >"$out/answer" 2>"$out/log" ||
        { cat "$out/log" >&2; exit 1; }
    echo "$(awk '/Collected :/ { print $4 }' "$out/log") $(grep -o '"operations":[0-9]*' "$out/answer" | cut -d: -f2)"
}

echo "| instructions | jemalloc | mimalloc | memcg, compiled out | none | limited | 1000 groups |"
echo "|---|---|---|---|---|---|---|"
for workload in "${workloads[@]}"; do
    printf '| %s |' "$workload"
    for child in "$bin/on-jemalloc none" "$bin/on-mimalloc none" "$target/unaccounted/release/on-memcg-alone compiled-out" \
        "$bin/on-memcg-alone none" "$bin/on-memcg limited" "$bin/on-memcg-tenants groups-1000"; do
        read -r binary state <<<"$child"
        read -r few few_done <<<"$(count 1 "$binary" "$workload" "$state")"
        read -r many many_done <<<"$(count 11 "$binary" "$workload" "$state")"
        awk -v i="$((many - few))" -v n="$((many_done - few_done))" 'BEGIN { printf " %.1f |", i / n }'
    done
    echo
done

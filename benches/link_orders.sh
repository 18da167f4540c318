#!/usr/bin/env bash
# Hot workloads in binaries whose functions lie in other orders: where code lies alone moves a pair by a tenth, so one binary is one sample.
#
#     benches/link_orders.sh ORDERS [WORKLOAD...]      default: the pairs, box.64 and batch.lifo.64
#
# Each order is a seed of the linker's (lld shuffles the sections of functions). Of each binary the least of 5 runs counts, jemalloc's and memcg's in turn
# on one core; the table has the median of the ratios over the orders, and the least and the greatest.
set -euo pipefail
cd "$(dirname "$0")/.."

orders=${1:?how many orders?}
[[ $orders =~ ^[1-9][0-9]*$ ]] || {
    echo "$0: '$orders' is no number of orders" >&2
    exit 2
}
shift
workloads=("$@")
[ $# -gt 0 ] || workloads=(pair.16 pair.64 pair.256 pair.1024 pair.4096 box.64 batch.lifo.64)

target=${CARGO_TARGET_DIR:-target}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# features binary order
link() {
    cargo rustc --quiet --release -p memcg-benches --no-default-features --features "$1" --bin "$2" -- \
        -C "link-arg=-Wl,--shuffle-sections=*=$3"
    cp "$target/release/$2" "$work/$2-$3"
}
# All orders of a binary one after another: what it is made of is built once.
for child in "peers on-jemalloc" "ours on-memcg" "ours on-memcg-alone"; do
    for order in $(seq "$orders"); do link ${child} "$order"; done
done

# binary workload state: nanoseconds of an operation
time_of() {
    taskset -c 0 "$1" --workload "$2" --scale quick --state "$3" | grep -o '"ns":[0-9.]*' | cut -d: -f2
}

echo "| of jemalloc, $orders link orders | no group used | limited group |"
echo "|---|---|---|"
for workload in "${workloads[@]}"; do
    for order in $(seq "$orders"); do
        for _ in 1 2 3 4 5; do
            echo "$order $(time_of "$work/on-jemalloc-$order" "$workload" none)" \
                "$(time_of "$work/on-memcg-alone-$order" "$workload" none)" \
                "$(time_of "$work/on-memcg-$order" "$workload" limited)"
        done
    done | awk -v name="$workload" '
        function least(at, value) { if (!(at in low) || value < low[at]) low[at] = value }
        function median(state,   n, i, j, sorted, swap) {
            for (i = 1; i <= orders; i++) sorted[i] = low[i, state] / low[i, 1]
            for (i = 2; i <= orders; i++)
                for (j = i; j > 1 && sorted[j - 1] > sorted[j]; j--) {
                    swap = sorted[j]; sorted[j] = sorted[j - 1]; sorted[j - 1] = swap
                }
            n = int((orders + 1) / 2)
            return sprintf("%.2f (%.2f to %.2f)", (sorted[n] + sorted[orders + 1 - n]) / 2, sorted[1], sorted[orders])
        }
        { orders = $1; for (state = 1; state <= 3; state++) least($1 SUBSEP state, $(state + 1)) }
        END { printf "| %s | %s | %s |\n", name, median(2), median(3) }'
done

#!/usr/bin/env bash
# Pairs qimg with qemu-img: wall, CPU and memory of each command, side by side.
#
#     benches/compare.sh [--runs N] [--sizes 1,16] [--densities 0,0.01c,1r,50r,100]
#                        [--only 'info,bitmap --merge,dump'] [--folder DIR] [--no-peers]
#
# Ends with 1 when a row is worse than its peer. See benches/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
with_peers=yes
args=()
for arg in "$@"; do
    case $arg in
    --no-peers) with_peers= ;;
    *) args+=("$arg") ;;
    esac
done
cargo build --release --locked --quiet -p qimg
cargo build --release --locked --quiet -p qimg-qcow2 --example random_io
cargo build --locked --quiet -p qimg-tests --example measure
target=${CARGO_TARGET_DIR:-target}
peers=()
if [ -z "$with_peers" ]; then
    echo "without other libraries: --no-peers"
elif log=$(cargo build --release --locked --quiet --manifest-path benches/peers/Cargo.toml \
    --target-dir "$target/peers" 2>&1); then
    peers=(--peers "$target/peers/release/peers")
else
    echo "without other libraries, which can't be built:"
    tail -n 3 <<<"$log"
fi
exec python3 benches/compare.py --qimg "$target/release/qimg" \
    --random-io "$target/release/examples/random_io" \
    --measure "$target/debug/examples/measure" "${peers[@]}" "${args[@]}"

#!/usr/bin/env bash
# Pairs qimg with qemu-img: wall, CPU and memory of each command, side by side.
#
#     benches/compare.sh [--runs N] [--sizes 1,16] [--densities 0,0.01c,1r,50r,100]
#                        [--only 'info,bitmap --merge,dump'] [--folder DIR]
#
# Ends with 1 when a row is slower than its peer. See benches/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked --quiet -p qimg
cargo build --locked --quiet -p qimg-tests --example measure
target=${CARGO_TARGET_DIR:-target}
exec python3 benches/compare.py --qimg "$target/release/qimg" \
    --measure "$target/debug/examples/measure" "$@"

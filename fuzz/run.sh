#!/usr/bin/env bash
# Runs the fuzz targets, each for some seconds:
#
#     fuzz/run.sh [SECONDS [TARGET...]]        20 seconds of every target by default
#     fuzz/run.sh --fixed                      a fixed number of runs from a fixed seed
#
# The second form is CI's: it does the same each time, so that it fails for what a change
# did and not by chance. Looking for what nobody knows yet is the first form's job.
#
# Needs only stable Rust and a C++ compiler: the coverage that libFuzzer wants is an
# LLVM pass, which stable rustc offers too. A finding is written to fuzz/findings/TARGET/
# (commit it: the stable test `fuzz_replay` runs it from then on) and ends this with 1.
set -euo pipefail
cd "$(dirname "$0")"

fixed=
[ "${1:-}" != --fixed ] || { fixed=yes; set --; }
seconds=${1:-20}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(header directory_and_tables layered image disk written encrypted stream apply)

host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-../target}/fuzz
cargo run --quiet --locked --manifest-path ../Cargo.toml -p qimg-tests --example fuzz_seeds -- corpus
# With an explicit --target these flags do not reach build scripts.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --locked --release --target "$host" --target-dir "$target_dir" --bins
bin=$target_dir/$host/release

# About five to ten seconds each.
declare -A runs=([header]=200000 [directory_and_tables]=80000 [layered]=150000 [image]=6000
    [disk]=5000 [written]=5000 [encrypted]=2000 [stream]=50000 [apply]=20000)
one() {
    local target=$1 limit=(-max_total_time="$seconds")
    [ -z "$fixed" ] || limit=(-seed=1 -runs="${runs[$target]}")
    mkdir -p "corpus/$target" "findings/$target"
    "$bin/$target" "${limit[@]}" -timeout=10 -rss_limit_mb=1024 \
        -max_len=65536 -print_final_stats=0 -verbosity=1 \
        -artifact_prefix="findings/$target/" "corpus/$target" 2> "corpus/$target.log" || {
        tail -40 "corpus/$target.log" >&2
        echo "$target: a finding, see fuzz/findings/$target" >&2
        return 1
    }
    echo "== $target: ${limit[*]}"
    grep -E '^(#[0-9]+.*(INITED|DONE)|Done)' "corpus/$target.log" || tail -2 "corpus/$target.log"
}

# Two at a time: each has one thread.
failed=
for target in "${targets[@]}"; do
    [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n || failed=yes
    one "$target" &
done
while [ -n "$(jobs -p)" ]; do
    wait -n || failed=yes
done
[ -z "$failed" ]

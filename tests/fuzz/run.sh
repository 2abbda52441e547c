#!/usr/bin/env bash
# Runs every fuzz target of FOLDER for SECONDS, JOBS at a time. Seeds: tests/fuzz/corpus/NAME, if
# there is one. A crashing input is left in FOLDER/NAME.work and makes the run fail.
#     tests/fuzz/run.sh build/fuzz/fuzz 30 2
set -euo pipefail
folder=$1 seconds=$2 jobs=$3
here=$(cd "$(dirname "$0")" && pwd)

fuzz_one() {
    local target=$1 name work
    name=$(basename "$target")
    work=$target.work
    rm -rf "$work" && mkdir -p "$work/found"
    local seeds=()
    [ -d "$here/corpus/$name" ] && seeds=("$here/corpus/$name")
    if "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$work/" "$work/found" "${seeds[@]}" >"$work/log" 2>&1; then
        echo "$name: $(grep -o 'number_of_executed_units: .*' "$work/log")"
    else
        tail -40 "$work/log"
        echo "$name: FAILED, inputs in $work" >&2
        return 1
    fi
}
export -f fuzz_one
export seconds here
find "$folder" -maxdepth 1 -type f -name 'fuzz_*' -executable | sort |
    xargs -P "$jobs" -I{} bash -c 'fuzz_one {}'

#!/usr/bin/env bash
# Quantizes a checkpoint with the prompts beside this file, verifies the result and shows it.
#     examples/demo.sh build/release/tare build/demo/SmolLM2-135M-Instruct
set -euo pipefail
tare=$1 model=$2 out=$2-W8A8
prompts=$(dirname "$0")/prompts.jsonl

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run "$tare" quantize "$model" --out "$out" --calib "$prompts" --overwrite
run "$tare" verify "$out" --base "$model"
run "$tare" inspect "$out"
run ls -l "$out"

#!/usr/bin/env python3
"""Time grows linearly with layers and tokens, memory does not grow with layers: a table of three by
three runs, as CSV.

    bench/bench_growth.py [--shape llama-3.2-1b] [--layers 4,8,16] [--tokens 1024,2048,4096]
                          [--recipe llama3.1-70b] [--runs 3]

Weights are random, at the real shape of a layer. `seconds` is the median of the runs, `cpu_seconds`
the processor time of that run, which other programs on the machine disturb less.
"""
import argparse
import json
import os
import pathlib
import shutil
import sys

import measure

RELEASE = measure.ROOT / "build/release"
LENGTH = 256  # of one prompt


def quantize(args, model, tokens):
    """(seconds, processor seconds, peak bytes) of one run."""
    ids = [[(7919 * s + 104729 * t * t + t) % 1024 for t in range(LENGTH)]
           for s in range(tokens // LENGTH)]
    (model / "calib_ids.json").write_text(json.dumps(ids))
    before = os.times()
    seconds, peak, _ = measure.run([args.tare, "quantize", model, "--out", args.work / "out",
                                    "--calib", model / "calib_ids.json", "--recipe", args.recipe,
                                    "--overwrite", "--no-verify", "--quiet"])
    after = os.times()
    cpu = (after.children_user + after.children_system - before.children_user
           - before.children_system)
    return seconds, cpu, peak


def numbers(text):
    return [int(n) for n in text.split(",")]


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--shape", default="llama-3.2-1b")
    ap.add_argument("--layers", type=numbers, default=[4, 8, 16])
    ap.add_argument("--tokens", type=numbers, default=[1024, 2048, 4096])
    ap.add_argument("--recipe", default="llama3.1-70b")
    ap.add_argument("--runs", type=int, default=3)
    ap.add_argument("--tare", type=pathlib.Path, default=RELEASE / "tare")
    ap.add_argument("--work", type=pathlib.Path, default=measure.ROOT / "build/bench")
    args = ap.parse_args()

    rows = []
    for layers in args.layers:
        model = args.work / f"growth-{layers}"
        measure.run([sys.executable, measure.ROOT / "examples/make_random_checkpoint.py", model,
                     "--shape", args.shape, "--layers", layers])
        for tokens in args.tokens:
            runs = sorted(quantize(args, model, tokens) for _ in range(args.runs))
            seconds, cpu, _ = runs[len(runs) // 2]
            rows.append(measure.stamp() | {
                "bench": f"growth-{args.shape}", "layers": layers, "tokens": tokens,
                "seconds": f"{seconds:.2f}", "cpu_seconds": f"{cpu:.2f}",
                "cpu_ms_per_layer_and_1000_tokens": f"{1e6 * cpu / layers / tokens:.0f}",
                "peak_mib": max(peak for _, _, peak in runs) >> 20})
        shutil.rmtree(model)
    shutil.rmtree(args.work / "out")
    measure.print_csv(rows)


if __name__ == "__main__":
    main()

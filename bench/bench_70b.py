#!/usr/bin/env python3
"""What one decoder layer of a 70B model costs: time, peak memory, share of the machine's GEMM rate.

Makes a checkpoint of a few layers of the real shape with random weights and a small vocabulary,
quantizes it, and prints CSV. Needs about 6 GB of disk a three-layer checkpoint and its output.

    bench/bench_70b.py [--shape llama-3.1-70b|qwen2.5-72b] [--layers 3] [--tokens 2048]
                       [--recipe NAME] [--max-memory cpu=8GiB]

The GEMM rate is measured in the same sitting by the bench program that --gemm names: the largest
value in the column of its CSV whose name ends in `gops` (10^9 operations a second).
"""
import argparse
import csv
import json
import pathlib
import shutil
import sys

import measure

RELEASE = measure.ROOT / "build/release"
SAMPLE = 256  # tokens a calibration sample


def layer_operations(config, tokens):
    """Multiplications and additions of the seven linears of one layer over `tokens`."""
    h, wide, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    return 2 * tokens * (h * (q + 2 * kv) + q * h + 3 * h * wide)


def gemm_rate(program):
    """Operations a second: the best that the machine's GEMMs reach."""
    if not program.exists():
        sys.exit(f"{program}: not built")
    _, _, out = measure.run([program])
    rates = [float(value) for row in csv.DictReader(line for line in out.splitlines()
                                                    if not line.startswith("#"))
             for name, value in row.items() if name.endswith("gops") and value]
    return max(rates) * 1e9


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--shape", default="llama-3.1-70b")
    ap.add_argument("--layers", type=int, default=3)
    ap.add_argument("--tokens", type=int, default=2048)
    ap.add_argument("--tare", type=pathlib.Path, default=RELEASE / "tare")
    ap.add_argument("--gemm", type=pathlib.Path, default=RELEASE / "bench/bench_gemm")
    ap.add_argument("--work", type=pathlib.Path, default=measure.ROOT / "build/bench")
    ap.add_argument("--recipe", default="default")
    ap.add_argument("--max-memory", default="", help="the budget, for example cpu=4GiB")
    ap.add_argument("--keep", action="store_true", help="leave checkpoint and output behind")
    args = ap.parse_args()

    model, out = args.work / f"{args.shape}-{args.layers}", args.work / "out"
    samples = -(-args.tokens // SAMPLE)
    measure.run([sys.executable, measure.ROOT / "examples/make_random_checkpoint.py", model,
                 "--shape", args.shape, "--layers", args.layers, "--samples", samples,
                 "--length", SAMPLE])
    config = json.loads((model / "config.json").read_text())
    rate = gemm_rate(args.gemm)
    budget = ["--max-memory", args.max_memory] if args.max_memory else []
    seconds, peak, _ = measure.run([args.tare, "quantize", model, "--out", out, "--calib",
                                    model / "calib_ids.json", "--overwrite", "--quiet",
                                    "--recipe", args.recipe, *budget])
    tokens = samples * SAMPLE
    done = layer_operations(config, tokens) * args.layers / seconds
    measure.print_csv([measure.stamp() | {
        "bench": f"{args.shape}-{args.layers}", "tokens": tokens, "recipe": args.recipe,
        "budget": args.max_memory, "seconds": f"{seconds:.1f}",
        "seconds_a_layer": f"{seconds / args.layers:.2f}", "peak_gib": f"{peak / 2**30:.2f}",
        "gops": f"{done / 1e9:.0f}", "machine_gops": f"{rate / 1e9:.0f}",
        "gemm_share": f"{done / rate:.3f}"}])
    if not args.keep:
        shutil.rmtree(model)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()

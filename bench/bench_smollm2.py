#!/usr/bin/env python3
"""tare against msModelSlim on SmolLM2-135M-Instruct, in one sitting; prints CSV.

Both calibrate with the same prompts by act_method 1, every linear but the last quantized, and save
safetensors. Runs alternate, so that both see the same machine; the row holds medians.

    bench/bench_smollm2.py --model build/demo/SmolLM2-135M-Instruct --calib boolq.jsonl \\
        --peer run_msmodelslim.py --peer-python VENV/bin/python [--runs 3]

--peer is a script that takes MODEL OUT CALIB --n N --act 1 --level L0 --keep-down --save safe_tensor
and runs msModelSlim 26.1.0 as its example scripts do. Without --peer, tare alone is measured.
"""
import argparse
import pathlib
import statistics
import tempfile

import measure

RELEASE = measure.ROOT / "build/release/tare"


def tare_command(args, out):
    return [args.tare, "quantize", args.model, "--out", out, "--calib", args.calib,
            "--samples", args.samples, "--act-method", 1, "--quiet"]


def peer_command(args, out):
    return [args.peer_python, args.peer, args.model, out, args.calib, "--n", args.samples,
            "--act", 1, "--level", "L0", "--keep-down", "--save", "safe_tensor"]


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--model", required=True, type=pathlib.Path)
    ap.add_argument("--calib", required=True, type=pathlib.Path)
    ap.add_argument("--tare", type=pathlib.Path, default=RELEASE)
    ap.add_argument("--peer", type=pathlib.Path)
    ap.add_argument("--peer-python", type=pathlib.Path, default=pathlib.Path("python3"))
    ap.add_argument("--samples", type=int, default=50)
    ap.add_argument("--runs", type=int, default=3)
    args = ap.parse_args()
    for name in ("model", "calib", "tare", "peer"):
        path = getattr(args, name)
        setattr(args, name, path and path.resolve())

    commands = {"tare": tare_command}
    if args.peer:
        commands["msmodelslim"] = peer_command
    costs = {name: [] for name in commands}
    for _ in range(args.runs):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                # msModelSlim refuses to work where others may write, and leaves a file where it runs.
                costs[name].append(
                    measure.run(command(args, f"{folder}/out"), umask=0o027, cwd=folder)[:2])

    seconds = {name: statistics.median(s for s, _ in c) for name, c in costs.items()}
    peak = {name: max(p for _, p in c) for name, c in costs.items()}
    row = measure.stamp() | {"bench": "smollm2-act1", "samples": args.samples, "runs": args.runs}
    for name in commands:
        row |= {f"{name}_s": f"{seconds[name]:.2f}", f"{name}_peak_mib": peak[name] >> 20}
    if args.peer:
        row |= {"times_faster": f"{seconds['msmodelslim'] / seconds['tare']:.1f}",
                "peak_ratio": f"{peak['tare'] / peak['msmodelslim']:.3f}"}
    measure.print_csv([row])


if __name__ == "__main__":
    main()

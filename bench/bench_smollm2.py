#!/usr/bin/env python3
"""tare against msModelSlim on SmolLM2-135M-Instruct, in one sitting; prints CSV.

Both calibrate with the same prompts by the same recipe and save safetensors. Runs alternate, so
that both see the same machine; the row holds medians.

    bench/bench_smollm2.py --model build/demo/SmolLM2-135M-Instruct --calib boolq.jsonl \\
        --peer run_msmodelslim.py --peer-python VENV/bin/python [--recipe llama3.1-70b] [--runs 3]

--recipe act1 (the default) is act_method 1, every linear but the last quantized; the others are
those that ship. --peer is a script that takes MODEL OUT CALIB --n N --save safe_tensor and the
flags of RECIPES, and runs msModelSlim 26.1.0 as its example scripts do. Without it, tare alone is
measured.
"""
import argparse
import pathlib
import statistics
import tempfile

import measure

RELEASE = measure.ROOT / "build/release/tare"
RECIPES = {  # name: flags of tare, flags of the peer (which keeps down_proj float by itself)
    "act1": (["--act-method", 1], ["--act", 1, "--level", "L0", "--keep-down"]),
    "llama3.1-70b": (["--recipe", "llama3.1-70b"],
                     ["--act", 3, "--anti", "m3", "--level", "L5", "--fa"]),
    "qwen2.5-72b": (["--recipe", "qwen2.5-72b"], ["--act", 1, "--level", "L0", "--fa"]),
}


def tare_command(args, out):
    return [args.tare, "quantize", args.model, "--out", out, "--calib", args.calib,
            "--samples", args.samples, *RECIPES[args.recipe][0], "--quiet"]


def peer_command(args, out):
    return [args.peer_python, args.peer, args.model, out, args.calib, "--n", args.samples,
            *RECIPES[args.recipe][1], "--save", "safe_tensor"]


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--model", required=True, type=pathlib.Path)
    ap.add_argument("--calib", required=True, type=pathlib.Path)
    ap.add_argument("--tare", type=pathlib.Path, default=RELEASE)
    ap.add_argument("--peer", type=pathlib.Path)
    ap.add_argument("--peer-python", type=pathlib.Path, default=pathlib.Path("python3"))
    ap.add_argument("--recipe", choices=RECIPES, default="act1")
    ap.add_argument("--samples", type=int, default=50)
    ap.add_argument("--runs", type=int, default=3)
    args = ap.parse_args()
    for name in ("model", "calib", "tare", "peer"):
        path = getattr(args, name)
        setattr(args, name, path and path.resolve())
    if args.peer_python.exists():  # a link to follow would lead out of its environment
        args.peer_python = args.peer_python.absolute()

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
    row = measure.stamp() | {"bench": f"smollm2-{args.recipe}", "samples": args.samples,
                             "runs": args.runs}
    for name in commands:
        row |= {f"{name}_s": f"{seconds[name]:.2f}", f"{name}_peak_mib": peak[name] >> 20}
    if args.peer:
        row |= {"times_faster": f"{seconds['msmodelslim'] / seconds['tare']:.1f}",
                "peak_ratio": f"{peak['tare'] / peak['msmodelslim']:.3f}"}
    measure.print_csv([row])


if __name__ == "__main__":
    main()

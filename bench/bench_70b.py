#!/usr/bin/env python3
"""What one decoder layer of a 70B model costs, and how far that is from what the machine can do.

Makes a checkpoint of a few layers of the real shape with random weights and a small vocabulary,
quantizes it with a recipe, and prints CSV. Needs about 6 GB of disk a three-layer checkpoint and
its output.

    bench/bench_70b.py [--shape llama3.1-70b|qwen2.5-72b] [--recipe NAME] [--layers 3] [--tokens 2048]
                       [--max-memory cpu=8GiB]

The bound is the larger of two times. One is that of the matrix products, each at the best rate of
tare's own GEMM in the format in which it has to run (--gemm, both before and after, the better
one): fake-quantized linears in INT8; FP32: linears that stay float, the float stream of the scored
samples, m3's 20 candidates on the first sample, attention. The other is that of the disk: the
checkpoint read once or twice (disable_level), the output written, at the rates of plain direct
reads and synced writes. `share` is bound over time; `cpu_share` the same in processor seconds,
which stays meaningful while other programs use the machine.

disable_level is L1 unless --level says otherwise: the score pass takes place as in a full run, but
the recipe's five linears of 560 would be most of a few layers.

`estimate` is what --dry-run says, before the run, of a checkpoint with 80 such layers (one with
data, the others holes) and the level in proportion: the median of --estimates, over what the run's
time comes to for 80 layers.
"""
import argparse
import csv
import json
import mmap
import os
import pathlib
import shutil
import statistics
import sys
import time

import measure

RELEASE = measure.ROOT / "build/release"
SHAPES = {"llama3.1-70b": "llama-3.1-70b", "qwen2.5-72b": "qwen2.5-72b"}
GROUPS = {"qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
          "o": ("self_attn.o_proj",), "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
          "down": ("mlp.down_proj",)}
SCORED, CANDIDATES = 5, 20
BLOCK = 4 << 20
WHOLE = 80  # layers of the whole model


def linear_shapes(config):
    """{name in a layer: (outputs, inputs)}"""
    h, wide, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    sizes = {"self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
             "self_attn.o_proj": (h, q), "mlp.gate_proj": (wide, h), "mlp.up_proj": (wide, h),
             "mlp.down_proj": (h, wide)}
    return sizes


def operations(config, record, samples, length):
    """(FP32, INT8) multiplications and additions that the run cannot do without."""
    sizes, recipe = linear_shapes(config), record["recipe"]
    weights = {name: n * k for name, (n, k) in sizes.items()}
    scores = recipe["quant"]["act_method"] == 3 or recipe["fallback"]["disable_level"] != "L0"
    method = recipe["anti_outlier"]["anti_method"]
    stream = 0 if method in (None, "none") else 1 if method == "m3" else samples
    stream = max(stream, min(samples, SCORED) if scores else 0)
    attention = 2 * length * length * config["num_attention_heads"] * config["head_dim"]
    floats, integers = 0, 0
    for layer in range(config["num_hidden_layers"]):
        floats += 2 * stream * length * sum(weights.values()) + (stream + samples) * attention
        for name, count in weights.items():
            if f"model.layers.{layer}.{name}" in record["float_linears"]:
                floats += 2 * samples * length * count
            else:
                integers += 2 * samples * length * count
        if method == "m3":
            floats += 2 * CANDIDATES * length * sum(weights[name] for group in ("qkv", "gate_up")
                                                    for name in GROUPS[group])
    return floats, integers


def gemm_rates(program):
    """{"float" and "int8": (operations a second, the same a second that every thread computed)}"""
    if not program.exists():
        sys.exit(f"{program}: not built")
    _, _, out = measure.run([program])
    rows = csv.DictReader(line for line in out.splitlines() if not line.startswith("#"))
    return {row["kind"][8:]: (float(row["gops"]) * 1e9, float(row["gops_cpu"]) * 1e9)
            for row in rows if row["kind"].startswith("machine_")}


def better(a, b):
    return {kind: tuple(map(max, a[kind], b[kind])) for kind in a}


def read_rate(path, most=2 << 30):
    buffer, done = mmap.mmap(-1, BLOCK), 0
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    start = time.monotonic()
    while done < most:
        got = os.preadv(fd, [buffer], done)
        done += got
        if got < BLOCK:
            break
    os.close(fd)
    return done / (time.monotonic() - start)


def write_rate(path, size=1 << 30):
    block, start = os.urandom(BLOCK), time.monotonic()
    with open(path, "wb") as f:
        for _ in range(size // BLOCK):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())
    rate = size / (time.monotonic() - start)
    path.unlink()
    return rate


def make_checkpoint(path, args, layers, data_layers):
    if not (path / "config.json").exists():  # written last
        measure.run([sys.executable, measure.ROOT / "examples/make_random_checkpoint.py", path,
                     "--shape", SHAPES[args.shape], "--layers", layers,
                     "--data-layers", data_layers])


def settings(args, calib, level):
    return ["--calib", calib, "--recipe", args.recipe or args.shape, "--samples", args.samples,
            "--disable-level", level, "--no-verify", "--quiet",
            *(["--max-memory", args.max_memory] if args.max_memory else [])]


def estimated_seconds(args, calib):
    """What --dry-run says of the whole model; the median of some."""
    model = args.work / f"{args.shape}-{WHOLE}"
    make_checkpoint(model, args, WHOLE, 1)
    level = f"L{int(args.level[1:]) * WHOLE // args.layers}"
    command = [args.tare, "quantize", model, "--dry-run", "--json", *settings(args, calib, level)]
    seconds = [json.loads(measure.run(command)[2])["seconds"] for _ in range(args.estimates)]
    if not args.keep:
        shutil.rmtree(model)
    return statistics.median(seconds)


def folder_bytes(folder):
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def arguments():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--shape", choices=SHAPES, default="llama3.1-70b")
    ap.add_argument("--recipe", default=None, help="(default: that of the shape)")
    ap.add_argument("--level", default="L1")
    ap.add_argument("--layers", type=int, default=3)
    ap.add_argument("--tokens", type=int, default=2048)
    ap.add_argument("--length", type=int, default=165, help="tokens a sample, as BoolQ's on average")
    ap.add_argument("--tare", type=pathlib.Path, default=RELEASE / "tare")
    ap.add_argument("--gemm", type=pathlib.Path, default=RELEASE / "bench/bench_gemm")
    ap.add_argument("--work", type=pathlib.Path, default=measure.ROOT / "build/bench")
    ap.add_argument("--max-memory", default="", help="the budget, for example cpu=4GiB")
    ap.add_argument("--estimates", type=int, default=3)
    ap.add_argument("--keep", action="store_true", help="leave checkpoint and output behind")
    return ap.parse_args()


def main():
    args = arguments()
    model, out = args.work / f"{args.shape}-{args.layers}", args.work / "out"
    args.samples = samples = -(-args.tokens // args.length)
    make_checkpoint(model, args, args.layers, args.layers)
    config = json.loads((model / "config.json").read_text())
    ids = [[(7919 * s + 104729 * t * t + t) % config["vocab_size"] for t in range(args.length)]
           for s in range(samples)]
    calib = model / "calib_ids.json"
    calib.write_text(json.dumps(ids))

    rates = gemm_rates(args.gemm)
    read = read_rate(max(model.glob("*.safetensors"), key=lambda f: f.stat().st_size))
    write = write_rate(args.work / "write.bin")
    estimate = estimated_seconds(args, calib)
    before = os.times()
    seconds, peak, _ = measure.run([args.tare, "quantize", model, "--out", out, "--overwrite",
                                    *settings(args, calib, args.level)])
    after = os.times()
    cpu = (after.children_user + after.children_system - before.children_user
           - before.children_system) / os.cpu_count()
    rates = better(rates, gemm_rates(args.gemm))

    record = json.loads((out / "tare_run.json").read_text())
    floats, integers = operations(config, record, samples, args.length)
    passes = 1 if record["recipe"]["fallback"]["disable_level"] == "L0" else 2
    disk = passes * folder_bytes(model) / read + folder_bytes(out) / write
    products, busy = (floats / rates["float"][i] + integers / rates["int8"][i] for i in (0, 1))
    measure.print_csv([measure.stamp() | {
        "bench": f"{args.shape}-{args.layers}", "recipe": args.recipe or args.shape,
        "tokens": samples * args.length, "budget": args.max_memory,
        "seconds_a_layer": f"{seconds / args.layers:.2f}",
        "estimate": f"{estimate / (seconds / args.layers * WHOLE):.3f}",
        "cpu_seconds_a_layer": f"{cpu / args.layers:.2f}", "peak_gib": f"{peak / 2**30:.2f}",
        "float_tops": f"{floats / args.layers / 1e12:.2f}",
        "int8_tops": f"{integers / args.layers / 1e12:.2f}",
        "float_gops": f"{rates['float'][0] / 1e9:.0f}", "int8_gops": f"{rates['int8'][0] / 1e9:.0f}",
        "read_mbs": f"{read / 1e6:.0f}", "write_mbs": f"{write / 1e6:.0f}",
        "bound_products": f"{products / args.layers:.2f}", "bound_disk": f"{disk / args.layers:.2f}",
        "share": f"{max(products, disk) / seconds:.3f}", "cpu_share": f"{busy / cpu:.3f}"}])
    if not args.keep:
        shutil.rmtree(model)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()

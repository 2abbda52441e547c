#!/usr/bin/env python3
"""What a layer of a large mixture of experts costs, and how far that is from what the machine can do.

Makes a checkpoint of two layers of a published shape with random weights and a small vocabulary (of
DeepSeek-V3's or Kimi-K2's, FP8, a dense layer and one of experts; of Qwen3-235B-A22B's, BF16, two of
experts), calibrates and quantizes it, and prints CSV. Needs 25 GB of disk, Kimi-K2 40 GB.

    bench/bench_experts.py [--shape deepseek-v3|kimi-k2|qwen3-235b-a22b] [--tokens 4000] [--max-memory cpu=4GiB]

The bound of a layer is the larger of two times (bench_70b.py): its matrix products, each at the best
rate of tare's own GEMM in the format in which it has to run, and the disk, which reads it and writes
it. The bound of the run is the sum of its layers' bounds: reading ahead reaches one expert into the
next layer, no further. Rates are measured before and after the run, and the better ones count; `share`
is bound over time, `cpu_share` the products alone over processor seconds, which stays meaningful while
other programs use the machine.
"""
import argparse
import json
import os
import pathlib
import shutil
import sys

import measure
from bench_70b import RELEASE, better, folder_bytes, gemm_rates, read_rate, write_rate

sys.path.insert(0, str(measure.ROOT / "examples"))
from make_random_checkpoint import num_experts  # noqa: E402

DENSE_FIRST = ("--set", "first_k_dense_replace=1")
SHAPES = {"deepseek-v3": DENSE_FIRST, "kimi-k2": DENSE_FIRST, "qwen3-235b-a22b": ()}


def attention_size(config):
    """Weights of a layer's attention in linears and in kv_b_proj, which stays float, and the
    values that a pair of tokens costs."""
    h, heads = config["hidden_size"], config["num_attention_heads"]
    if "kv_lora_rank" not in config:
        head = config["head_dim"]
        return 2 * h * head * (heads + config["num_key_value_heads"]), 0, 2 * heads * head
    nope, rope, value = (config[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    query, latent = config["q_lora_rank"], config["kv_lora_rank"]
    return (h * (query + latent + rope) + query * heads * (nope + rope) + heads * value * h,
            heads * (nope + value) * latent, heads * (nope + rope + value))


def products(config, layer, tokens, pairs, stream):
    """{kind: multiplications and additions of a layer}; `stream`: tokens of a float stream."""
    h = config["hidden_size"]
    integers, floats, pair = attention_size(config)
    experts = num_experts(config, layer)
    if experts:
        passed = config["num_experts_per_tok"] + config.get("n_shared_experts", 0)
        integers += 3 * h * config["moe_intermediate_size"] * passed
        floats += h * experts
    else:
        integers += 3 * h * config["intermediate_size"]
    return {"int8": 2 * tokens * integers,
            "fp32": 2 * tokens * floats + 2 * stream * (integers + floats)
                    + 2 * pairs * pair * (1 + stream / tokens)}


def arguments():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--shape", choices=SHAPES, default="deepseek-v3")
    ap.add_argument("--flags", default="", help="more of tare quantize, for example --anti-method=m4")
    ap.add_argument("--tokens", type=int, default=4000)
    ap.add_argument("--length", type=int, default=165, help="tokens a sample, as BoolQ's on average")
    ap.add_argument("--runs", type=int, default=1, help="the median of some")
    ap.add_argument("--tare", type=pathlib.Path, default=RELEASE / "tare")
    ap.add_argument("--gemm", type=pathlib.Path, default=RELEASE / "bench/bench_gemm")
    ap.add_argument("--work", type=pathlib.Path, default=measure.ROOT / "build/bench")
    ap.add_argument("--max-memory", default="cpu=4GiB")
    ap.add_argument("--keep", action="store_true", help="leave the checkpoint behind")
    return ap.parse_args()


def make_checkpoint(args, model):
    if not (model / "config.json").exists():  # written last
        measure.run([sys.executable, measure.ROOT / "examples/make_random_checkpoint.py", model,
                     "--shape", args.shape, "--layers", 2, *SHAPES[args.shape]])
    config = json.loads((model / "config.json").read_text())
    samples = -(-args.tokens // args.length)
    ids = [[(7919 * s + 104729 * t * t + t) % config["vocab_size"] for t in range(args.length)]
           for s in range(samples)]
    calib = args.work / "calib_ids.json"
    calib.write_text(json.dumps(ids))
    return config, calib, samples


def quantize(args, model, calib):
    """(seconds, processor seconds over the processors, peak, bytes of the layers' parts written)"""
    out, before = args.work / "out", os.times()
    seconds, peak, _ = measure.run(
        [args.tare, "quantize", model, "--out", out, "--overwrite", "--calib", calib, "--no-verify",
         "--quiet", "--max-memory", args.max_memory, *args.flags.split()])
    after = os.times()
    cpu = (after.children_user + after.children_system - before.children_user
           - before.children_system) / os.cpu_count()
    written = folder_bytes(out)
    shutil.rmtree(out)
    return seconds, cpu, peak, written


def disk_rates(args, model):
    largest = max(model.glob("*.safetensors"), key=lambda f: f.stat().st_size)
    return read_rate(largest), write_rate(args.work / "write.bin")


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    model = args.work / f"{args.shape}-2"
    config, calib, samples = make_checkpoint(args, model)
    rates, disk = gemm_rates(args.gemm), disk_rates(args, model)
    runs = sorted(quantize(args, model, calib) for _ in range(args.runs))
    rates = better(rates, gemm_rates(args.gemm))
    disk = tuple(map(max, disk, disk_rates(args, model)))

    tokens, pairs = samples * args.length, samples * args.length * (args.length + 1) // 2
    seconds, cpu, peak, written = runs[len(runs) // 2]
    stream = tokens if "anti-method" in args.flags else 0
    layers = [f.stat().st_size for f in sorted(model.glob("*.safetensors"))[1:3]]
    bounds, busy = [], 0
    for layer, size in enumerate(layers):
        work = products(config, layer, tokens, pairs, stream)
        times = [sum(count / rates[kind][i] for kind, count in work.items()) for i in (0, 1)]
        moved = size / disk[0] + size * written / folder_bytes(model) / disk[1]
        bounds.append((times[0], moved))
        busy += times[1]
    bound = sum(map(max, bounds))
    measure.print_csv([measure.stamp() | {
        "bench": f"{args.shape}-2", "flags": args.flags, "tokens": tokens, "budget": args.max_memory,
        "seconds": f"{seconds:.2f}", "cpu_seconds": f"{cpu:.2f}", "peak_gib": f"{peak / 2**30:.2f}",
        **{f"{kind}_gops": f"{rates[kind][0] / 1e9:.0f}" for kind in ("fp32", "int8")},
        **{f"{kind}_gops_cpu": f"{rates[kind][1] / 1e9:.0f}" for kind in ("fp32", "int8")},
        "read_mbs": f"{disk[0] / 1e6:.0f}", "write_mbs": f"{disk[1] / 1e6:.0f}",
        **{f"{name}_{kind}": f"{times[i]:.2f}" for name, times in zip(("first", "second"), bounds)
           for i, kind in enumerate(("products", "disk"))},
        "share": f"{bound / seconds:.3f}", "cpu_share": f"{busy / cpu:.3f}"}])
    if not args.keep:
        shutil.rmtree(model)


if __name__ == "__main__":
    main()

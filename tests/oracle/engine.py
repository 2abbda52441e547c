#!/usr/bin/env python3
"""Runs a quantized checkpoint the way an inference engine would, and compares it with the float model.

Reads an output folder (quant_model_description*.json, or the quantization_config of
compressed-tensors, and safetensors) with none of the quantizer's own code, rebuilds the model in
PyTorch, and executes every quantized linear with the integer arithmetic of the engine's kernels:
- W8A8: INT8 input and weight, INT32 sums, + quant_bias, * deq_scale;
- W8A8_DYNAMIC: a scale for each token, then * weight_scale, + bias;
- W8A8_MIX: the latter in prefill, the former in decode (--form);
- W8A16: float inputs, weight * weight_scale by rows or groups;
- FAQuant, C8: queries, keys and values as INT8 times their scales. Every key and value counts as
  cached, its own token's too: engines attend to float ones until a prompt has been read.

    engine.py --base FLOAT_MODEL_DIR --quant OUT_DIR --text FILE.jsonl [--tokens 4096] [--json OUT]

FILE.jsonl: one object a line, with "inputs_pretokenized", "prompt" or "text". Prints one JSON
object: perplexity of both, mean KL(float || quantized) in nats a token, top-1 agreement, the worst
token's KL, and how many tensors of each type there are. Exits 1 on a tensor that is missing, has a
wrong shape or dtype, or is described but not there (and the reverse).
"""
import argparse
import collections
import json
import math
import pathlib
import re
import sys

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
OFFSETS = FLOATS + (torch.int8,)


class Output:
    """The tensors of one quantized checkpoint and what they are said to be."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.files = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, "pt")
            for key in file.keys():
                if key in self.files:
                    sys.exit(f"{key}: in two files")
                self.files[key] = file
        descriptions = sorted(folder.glob("quant_model_description*.json"))
        if len(descriptions) > 1:
            sys.exit(f"{folder}: {len(descriptions)} quant_model_description*.json")
        config = json.loads((folder / "config.json").read_text()) if not descriptions else {}
        config = config.get("quantization_config", {})
        self.groups, self.ignored = config.get("config_groups", {}), config.get("ignore", [])
        if not descriptions and not self.groups:
            sys.exit(f"{folder}: no quant_model_description*.json and no config_groups")
        self.description = json.loads(descriptions[0].read_text()) if descriptions else None

    def __contains__(self, key):
        return key in self.files

    def get(self, key, dtypes, *shapes):
        if key not in self.files:
            sys.exit(f"{key}: missing from the checkpoint")
        tensor = self.files[key].get_tensor(key)
        if tensor.dtype not in dtypes:
            sys.exit(f"{key}: dtype {tensor.dtype}, expected one of {dtypes}")
        if shapes and tuple(tensor.shape) not in shapes:
            sys.exit(f"{key}: shape {tuple(tensor.shape)}, expected {shapes}")
        return tensor

    def find(self, key, dtypes, *shapes):
        return self.get(key, dtypes, *shapes) if key in self else None

    def kind(self, linear):
        """The type of a linear. compressed-tensors names none: it says what happens to inputs."""
        if self.description is not None:
            return self.description.get(linear + ".weight")
        def among(targets):
            return any(re.match(t[3:], linear) if t.startswith("re:") else t in (linear, "Linear")
                       for t in targets)

        for group in self.groups.values():
            if among(group["targets"]) and not among(self.ignored):
                inputs = group.get("input_activations")
                return "W8A16" if not inputs else "W8A8_DYNAMIC" if inputs["dynamic"] else "W8A8"
        return "FLOAT"

    def types(self):
        return self.description or {}


EXACT_COLUMNS = 1024  # sums of so many products of INT8 are whole numbers below 2^24


def integer_product(q, w):
    """q [...,k] times w [n,k], both whole numbers in float32; exact, in float64."""
    pairs = zip(q.split(EXACT_COLUMNS, -1), w.split(EXACT_COLUMNS, -1))
    return sum((a @ b.T).double() for a, b in pairs)


def round_to_int8(x, scale, offset=0):
    return torch.clamp(torch.round(x / scale) + offset, -128, 127)


def int8_weight(out, name, n, k):
    """[n,k] in float32; compressed-tensors packs those of weights alone, 4 biased by 128 a word."""
    packed = out.find(name + ".weight_packed", (torch.int32,), (n, -(-k // 4)))
    if packed is None:
        return out.get(name + ".weight", (torch.int8,), (n, k)).float()
    shape = out.get(name + ".weight_shape", (torch.int32, torch.int64), (2,)).tolist()
    if shape != [n, k]:
        sys.exit(f"{name}.weight_shape: {shape}, expected {[n, k]}")
    return (packed.contiguous().view(torch.uint8).float() - 128)[:, :k]


class Quantized(torch.nn.Module):
    """A linear in integers."""

    def __init__(self, out, name, linear):
        super().__init__()
        self.n, self.k = linear.weight.shape
        self.w = self.read_weight(out, name)
        self.bias = None

    def read_weight(self, out, name):
        return int8_weight(out, name, self.n, self.k)

    def read_scale(self, out, name):
        scale = out.get(name + ".weight_scale", FLOATS, (self.n, 1), (self.n,), (1,))
        self.d = scale.double().reshape(-1)
        offset = out.find(name + ".weight_offset", OFFSETS, (self.n, 1), (self.n,), (1,))
        if offset is not None and offset.any():
            sys.exit(f"{name}.weight_offset: not 0")
        bias = out.find(name + ".bias", FLOATS, (self.n,))
        self.bias = None if bias is None else bias.double()

    def finish(self, x, sums):
        y = sums * self.d
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class Static(Quantized):
    """quant_bias holds the bias and takes the input's offset away again."""

    def __init__(self, out, name, linear):
        super().__init__(out, name, linear)
        self.s = out.get(name + ".input_scale", FLOATS, (1,)).float()
        if out.description is None:
            self.o = out.find(name + ".input_zero_point", OFFSETS, (1,))
            self.o = torch.zeros(1) if self.o is None else self.o.float()
            self.read_scale(out, name)
            self.b = -self.o.double() * self.w.double().sum(1)
            self.d = self.d * self.s.double()
            return
        self.o = out.get(name + ".input_offset", OFFSETS, (1,)).float()
        self.b = out.get(name + ".quant_bias", (torch.int32,), (self.n,)).double()
        deq = out.get(name + ".deq_scale", (torch.int64, torch.float32), (self.n,), (1,))
        if deq.dtype == torch.int64:  # the low 32 bits hold those of a float32
            deq = (deq & 0xFFFFFFFF).to(torch.int32).view(torch.float32)
        self.d = deq.double()

    def forward(self, x):
        q = round_to_int8(x, self.s, self.o)
        return self.finish(x, integer_product(q, self.w) + self.b)


class PerToken(Quantized):
    def __init__(self, out, name, linear):
        super().__init__(out, name, linear)
        self.read_scale(out, name)

    def forward(self, x):
        x64 = x.double()
        s = x64.abs().amax(-1, keepdim=True) / 127
        q = torch.round(x64 / torch.where(s > 0, s, 1)).float()
        return self.finish(x, integer_product(q, self.w) * s)


class Int4PerToken(PerToken):
    """A byte holds two rows, the even one low. scale_bias, by which a kernel mends that it reads nibbles
    as 0..15, is what it has to be: 8 * the sum of the row's weights, here of each slice of columns."""

    def read_weight(self, out, name):
        rows = out.get(name + ".weight", (torch.int8,), (self.n // 2, self.k))
        nibbles = torch.stack([rows << 4 >> 4, rows >> 4], 1)
        return nibbles.reshape(self.n, self.k).float()

    def read_scale(self, out, name):
        self.d = out.get(name + ".weight_scale", (torch.float32,), (self.n, 1)).double().reshape(-1)
        bias = out.get(name + ".scale_bias", (torch.float32,), (self.n, 1), (self.n, 16))
        sums = self.w.double().reshape(self.n, bias.shape[1], -1).sum(-1) * self.d[:, None] * 8
        if (bias - sums).abs().max() > 1e-6 * sums.abs().max():
            sys.exit(f"{name}.scale_bias: not the sums of its rows")


class WeightOnly(Quantized):
    """weight_scale [n,1], or [n,groups] of as many columns each."""

    def __init__(self, out, name, linear):
        super().__init__(out, name, linear)
        scale = out.get(name + ".weight_scale", FLOATS).double().reshape(self.n, -1)
        offset = out.find(name + ".weight_offset", OFFSETS)
        offset = torch.zeros(1, 1) if offset is None else offset.double().reshape(self.n, -1)
        columns = self.k // scale.shape[1]
        self.w = ((self.w.double().reshape(self.n, -1, columns) - offset[..., None])
                  * scale[..., None]).reshape(self.n, self.k)
        bias = out.find(name + ".bias", FLOATS, (self.n,))
        self.bias = None if bias is None else bias.double()

    def forward(self, x):
        y = x.double() @ self.w.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


KINDS = {"W8A8": Static, "W8A8_DYNAMIC": PerToken, "W8A16": WeightOnly,
         "W4A8_DYNAMIC": Int4PerToken}
FORMS = {"prefill": PerToken, "decode": Static}  # of W8A8_MIX


class Norm(torch.nn.Module):
    def __init__(self, norm, weight, bias):
        super().__init__()
        self.norm, self.bias = norm, bias
        self.norm.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        y = self.norm(x)
        return y if self.bias is None else y + self.bias


class Cache:
    """What is done to the queries (FA3 alone), keys and values of an attention, each
    [batch,heads,tokens,D]; c8: per channel, with the reciprocal as the engine has it, in the
    scales' dtype; else per head."""

    def __init__(self, out, name, kv_heads):
        self.parts = {}
        for part in "qkv":
            fa, c8 = f"{name}.fa_{part}.", f"{name}.{part}_proj.kv_cache_"
            prefix, shape = (fa, (1, -1, 1, 1)) if fa + "scale" in out else (c8, (1, kv_heads, 1, -1))
            if prefix + "scale" not in out:
                continue
            scale = out.get(prefix + "scale", FLOATS)
            offset = out.get(prefix + "offset", OFFSETS, tuple(scale.shape))
            inverse = (1 / scale).float().reshape(shape) if prefix == c8 else None
            self.parts[part] = inverse, scale.float().reshape(shape), offset.float().reshape(shape)

    def apply(self, part, x):
        if part not in self.parts:
            return x
        inverse, scale, offset = self.parts[part]
        if scale.shape[1] not in (1, x.shape[1]) or scale.shape[3] not in (1, x.shape[3]):
            sys.exit(f"scales {tuple(scale.shape)} for {part} {tuple(x.shape)}")
        steps = x / scale if inverse is None else x * inverse
        q = torch.clamp(torch.round(steps) + offset, -128, 127)
        return (q - offset) * scale

    def attach(self, attention):
        """Between an attention and the function of its module that computes it."""
        attention.quantized_cache = self
        module = sys.modules[type(attention).__module__]
        if getattr(module, "plain_attention", None):
            return
        module.plain_attention = module.eager_attention_forward

        def forward(attn, q, k, v, *args, **kw):
            cache = getattr(attn, "quantized_cache", None)
            if cache:
                q, k, v = (cache.apply(part, x) for part, x in zip("qkv", (q, k, v)))
            return module.plain_attention(attn, q, k, v, *args, **kw)
        module.eager_attention_forward = forward


def load(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True,
                                                attn_implementation="eager").eval()


def float_tensor(out, key, like):
    return out.get(key, FLOATS, tuple(like.shape)).to(like.dtype)


def replace_linear(out, name, module, form):
    """The quantized module, or None: it stays, with the output's own weights."""
    kind = out.kind(name)
    classes = KINDS | {"W8A8_MIX": FORMS[form]}
    if kind in classes:
        return classes[kind](out, name, module)
    if kind != "FLOAT":
        sys.exit(f"{name}.weight: described as {kind!r}")
    module.weight.data = float_tensor(out, name + ".weight", module.weight)
    if module.bias is not None:
        module.bias.data = float_tensor(out, name + ".bias", module.bias)
    return None


def build(base, out, form="prefill"):
    """`out` an Output; form: of W8A8_MIX."""
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    model = load(base)
    tied = config.tie_word_embeddings and "lm_head.weight" not in out
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for name, module in list(model.named_modules()):
        new = None
        if isinstance(module, torch.nn.Linear) and not (name == "lm_head" and tied):
            new = replace_linear(out, name, module, form)
        elif isinstance(module, torch.nn.Embedding):
            module.weight.data = float_tensor(out, name + ".weight", module.weight)
        elif name.endswith("norm") and hasattr(module, "weight"):
            key = name if name + ".weight" in out else name + ".module"
            new = Norm(module, float_tensor(out, key + ".weight", module.weight),
                       out.find(key + ".bias", FLOATS, tuple(module.weight.shape)))
        elif name.endswith("self_attn"):
            Cache(out, name, config.num_key_value_heads).attach(module)
        if new is not None:
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
    return model


def logits(model, ids):
    """[len(ids),vocabulary] in float64."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


def kl_of_tokens(p, q):
    """KL(p || q) of each token's logits in nats."""
    p, q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    return (p.exp() * (p - q)).sum(-1)


def texts(path):
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                yield row.get("inputs_pretokenized") or row.get("prompt") or row["text"]


def compare(reference, quantized, prompts, tokens):
    """prompts: lists of ids, of which those are taken that make up `tokens`."""
    total, worst = collections.Counter(), 0.0
    for ids in prompts:
        p, q = (logits(model, ids)[:-1] for model in (reference, quantized))
        target = torch.tensor(ids[1:])[:, None]
        for name, x in (("float", p), ("quant", q)):
            total[name] -= torch.log_softmax(x, -1).gather(1, target).sum().item()
        kl = kl_of_tokens(p, q)
        worst = max(worst, kl.max().item())
        total["kl"] += kl.sum().item()
        total["agree"] += (p.argmax(-1) == q.argmax(-1)).sum().item()
        total["n"] += len(ids) - 1
        if total["n"] >= tokens:
            break
    n = total["n"]
    return {"tokens": n, "ppl_float": math.exp(total["float"] / n),
            "ppl_quant": math.exp(total["quant"] / n), "kl": total["kl"] / n, "kl_worst": worst,
            "top1_agreement": total["agree"] / n}


def judge(base, quant, text, *, reference=None, tokens=4096, max_length=512, form="prefill"):
    """What main() prints, of files and folders; `reference`: the float model, if it is loaded."""
    tokenizer, out = AutoTokenizer.from_pretrained(base, local_files_only=True), Output(quant)
    prompts = (tokenizer(line).input_ids[:max_length] for line in texts(text))
    result = compare(reference or load(base), build(base, out, form),
                     (ids for ids in prompts if len(ids) > 1), tokens)
    types = out.types()
    described = {key for key in types if "." in key}
    absent = sorted(described - set(out.files))
    undescribed = sorted(set(out.files) - described) if types else []
    return result | {
        "types": dict(collections.Counter(types[key] for key in out.files if key in types)),
        "described_but_absent": absent[:8], "present_but_undescribed": undescribed[:8]}


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--base", required=True)
    ap.add_argument("--quant", required=True)
    ap.add_argument("--text", required=True)
    ap.add_argument("--tokens", type=int, default=4096)
    ap.add_argument("--max-length", type=int, default=512)
    ap.add_argument("--form", choices=FORMS, default="prefill", help="of W8A8_MIX")
    ap.add_argument("--json")
    a = ap.parse_args()
    result = judge(a.base, a.quant, a.text, tokens=a.tokens, max_length=a.max_length, form=a.form)
    text = json.dumps(result, indent=1)
    print(text)
    if a.json:
        pathlib.Path(a.json).write_text(text, encoding="utf-8")
    if result["described_but_absent"] or result["present_but_undescribed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes half_reference.safetensors: what PyTorch and transformers compute in BF16 and F16.

Operators of the decoder and a search of m3, key "TAG|operator|tensor"; tests/unit/test_rounded.c
gives the same inputs to the C code. Needs tests/requirements-all.txt. Made with torch 2.13.0 and
transformers 4.57.6 on a CPU.
"""
import pathlib

import torch
from safetensors.torch import save_file
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.glm4 import modeling_glm4 as glm4
from transformers.models.llama import modeling_llama as llama

TOKENS, HEADS, KV_HEADS, HEAD_DIM, CHANNELS = 24, 4, 2, 20, 64
EPS = torch.finfo(torch.float32).eps


def requantized(w, scales, bits, symmetric):
    """Qw(w * s) / s, row by row (anti_outlier.md 1.5)."""
    w = w * scales
    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    limit = 2 ** (bits - 1)
    if symmetric:
        d, zero = (torch.maximum(-low, high) / (limit - 1)).clamp(min=EPS), 0
    else:
        d = ((high - low) / (2 * limit - 1)).clamp(min=EPS)
        zero = torch.round(-low / d) - limit
    return (torch.round(w / d + zero).clamp(-limit, limit - 1) - zero) * d / scales


def m3(x, weights, bits, symmetric):
    """Scales of the candidate with the smallest loss, and its index."""
    mean, best = x.abs().mean(0), None
    for i in range(20):
        u = mean.pow(i / 20).clamp(min=1e-4)
        scales = u / (u.max() * u.min()).sqrt()
        loss = sum((x @ w.T - x @ requantized(w, scales, bits, symmetric).T).float().pow(2).mean()
                   for w in weights)
        if best is None or loss < best[0]:
            best = loss, scales, i
    return best[1], torch.tensor([best[2]], dtype=torch.int32)


class Attention(torch.nn.Module):
    num_key_value_groups = HEADS // KV_HEADS


def operators(dtype):
    def normal(*shape, scale=1.0):
        return (torch.randn(*shape) * scale).to(dtype)
    x = normal(TOKENS, CHANNELS)
    x[:, 5] *= 20
    x[:, 40] *= 6
    norm = llama.LlamaRMSNorm(CHANNELS, eps=1e-6).to(dtype)
    norm.weight.data = (1 + 0.2 * torch.randn(CHANNELS)).to(dtype)
    yield "norm", {"x": x, "w": norm.weight.data, "y": norm(x)}

    gate, up = normal(TOKENS, CHANNELS, scale=2), normal(TOKENS, CHANNELS)
    yield "silu", {"gate": gate, "up": up, "y": torch.nn.functional.silu(gate) * up}

    q, k, v = (normal(1, heads, TOKENS, HEAD_DIM, scale=1.5) for heads in (HEADS, KV_HEADS, KV_HEADS))
    angle = torch.arange(TOKENS).float()[:, None] * 100.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = (torch.cat([f(angle)] * 2, -1)[None].to(dtype) for f in (torch.cos, torch.sin))
    q_turned, k_turned = llama.apply_rotary_pos_emb(q, k, cos, sin)
    yield "rope", {"x": q, "cos": angle.cos(), "sin": angle.sin(), "y": q_turned}

    future = torch.full((TOKENS, TOKENS), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]
    y, _ = llama.eager_attention_forward(Attention(), q_turned, k_turned, v, future,
                                         scaling=HEAD_DIM ** -0.5)
    rows = {"q": q_turned, "k": k_turned, "v": v}
    yield "attention", {n: t[0].transpose(0, 1) for n, t in rows.items()} | {"y": y[0]}

    first, second = normal(48, CHANNELS, scale=0.2), normal(32, CHANNELS, scale=0.2)
    parts = {"x": x, "w0": first, "w1": second}
    for bits in (8, 4):
        for kind in ("sym", "asym"):
            parts[f"s-{bits}-{kind}"], parts[f"candidate-{bits}-{kind}"] = m3(
                x, (first, second), bits, kind == "sym")
    yield "m3", parts


def operators_of_families(dtype):
    def normal(*shape, scale=1.0):
        return (torch.randn(*shape) * scale).to(dtype)
    norm = gemma2.Gemma2RMSNorm(CHANNELS, eps=1e-6).to(dtype)
    norm.weight.data = normal(CHANNELS, scale=0.2)
    x = normal(TOKENS, CHANNELS, scale=3)
    yield "norm from 1", {"x": x, "w": norm.weight.data, "y": norm(x)}

    gate, up = normal(TOKENS, CHANNELS, scale=2), normal(TOKENS, CHANNELS)
    y = torch.nn.functional.gelu(gate, approximate="tanh") * up
    yield "gelu", {"gate": gate, "up": up, "y": y}

    q, k, v = (normal(1, heads, TOKENS, HEAD_DIM, scale=1.5) for heads in (HEADS, KV_HEADS, KV_HEADS))
    angle = torch.arange(TOKENS).float()[:, None] * 100.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = (torch.cat([f(angle)] * 2, -1)[None].to(dtype) for f in (torch.cos, torch.sin))
    q_turned, k_turned = glm4.apply_rotary_pos_emb(q, k, cos, sin)
    yield "rope of neighbours", {"x": q, "cos": angle.cos(), "sin": angle.sin(), "y": q_turned}

    future = torch.full((TOKENS, TOKENS), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]
    y, _ = gemma2.eager_attention_forward(Attention(), q_turned, k_turned, v, future,
                                          scaling=20.0 ** -0.5, softcap=3.0)
    rows = {"q": q_turned, "k": k_turned, "v": v}
    yield "softcap", {n: t[0].transpose(0, 1) for n, t in rows.items()} | {"y": y[0]}


def main():
    torch.manual_seed(1)
    tensors = {}
    with torch.no_grad():
        for make, tag, dtype in ((operators, "BF16", torch.bfloat16),
                                 (operators, "F16", torch.float16),
                                 (operators_of_families, "BF16", torch.bfloat16),
                                 (operators_of_families, "F16", torch.float16)):
            for name, parts in make(dtype):
                tensors |= {f"{tag}|{name}|{part}": t.contiguous().clone()
                            for part, t in parts.items()}
    save_file(tensors, str(pathlib.Path(__file__).resolve().parent / "half_reference.safetensors"))


if __name__ == "__main__":
    main()

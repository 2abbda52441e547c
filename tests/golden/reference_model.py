"""A plain numpy forward of Llama, Qwen2 and Qwen3, written from the equations alone.

`logits(config, tensors, ids)` runs a float checkpoint in float64; with the tensors of a W8A8 output
laid over it, every linear that has an `input_scale` computes what the fake-quantized model computes:
y = ((q(x) - offset) * input_scale) @ (weight * weight_scale).T + bias.

With `types`, the output's description, the linears compute what an engine does. W8A8:
y = (q(x) @ weight.T + quant_bias) * deq_scale. W8A8_DYNAMIC, and W8A8_MIX in prefill, with a scale for
each token: s = max|x|/127, y = (rne(x/s) * s) @ (weight * weight_scale).T + bias.

With `dtype="BF16"` or `"F16"` every operation's result is rounded to that dtype, at the places where
PyTorch rounds when a model was loaded in it.
"""
import numpy as np

from tensor_file import round_to

GOLDEN_MODELS = ("llama", "qwen2", "qwen3")  # of those in tests/data/golden
DEFAULT_THETA = 10000.0
TIE = 3e-5  # what sums in FP32 leave in doubt of a value of up to 127


def silu(x):
    return x / (1 + np.exp(-x))


def rope_frequencies(config, head_dim):
    """f_j of RoPE (`default` and `llama3`), rounded to FP32 as every implementation stores them."""
    theta = config.get("rope_theta") or DEFAULT_THETA
    f = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "llama3":
        factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        wavelength = 2 * np.pi / f
        smooth = (original / wavelength - low) / (high - low)
        mixed = (1 - smooth) * f / factor + smooth * f
        f = np.where(wavelength > original / low, f / factor,
                     np.where(wavelength < original / high, f, mixed))
    elif kind != "default":
        raise ValueError(f"rope type {kind}")
    return f.astype(np.float32)


class Model:
    def __init__(self, config, tensors, dtype=None, types=None):
        self.config = config
        self.types = types or {}
        self.ties = set()  # tokens of which an engine in FP32 may round an input the other way
        self.dtype = dtype
        self.tensors = {name: t.data for name, t in tensors.items()}
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.eps = config.get("rms_norm_eps", 1e-6)

    def get(self, name):
        return self.tensors[name].astype(np.float64)

    def r(self, x):
        """What is left of a result in the model's dtype; float64 without one."""
        return x if self.dtype is None else round_to(x, self.dtype).astype(np.float64)

    def rms_norm(self, x, name):
        y = self.r(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps))
        y = self.r(self.get(name + ".weight") * y)
        return self.r(y + self.get(name + ".bias")) if name + ".bias" in self.tensors else y

    def linear(self, name, x):
        r, weight = self.r, self.get(name + ".weight")
        per_token = self.types.get(name + ".weight") in ("W8A8_DYNAMIC", "W8A8_MIX")
        if name + ".input_scale" in self.tensors and not per_token:
            scale, offset = self.get(name + ".input_scale"), self.get(name + ".input_offset")
            q = np.clip(np.rint(r(r(x / scale) + offset)), -128, 127)
            self.note_ties(x / scale)
            if self.types:
                return r((q @ weight.T + self.get(name + ".quant_bias")) * self.deq_scale(name))
            x = r(r(q - offset) * scale)
        elif per_token:
            scale = np.abs(x).max(axis=-1, keepdims=True) / 127
            scale[scale == 0] = 1  # a token of zeros stays zeros
            self.note_ties(x / scale)
            x = r(np.rint(r(x / scale)) * scale)
        if name + ".weight_scale" in self.tensors:
            weight = r((weight - self.get(name + ".weight_offset"))
                       * self.get(name + ".weight_scale"))
        y = x @ weight.T
        return r(y + self.get(name + ".bias") if name + ".bias" in self.tensors else y)

    def note_ties(self, x):
        distance = np.abs(x - np.floor(x) - 0.5)
        self.ties |= set(np.nonzero((distance < TIE).any(axis=-1))[0].tolist())

    def deq_scale(self, name):
        deq = self.tensors[name + ".deq_scale"]  # I64 holds the FP32 bits in its lower half
        return deq.astype(np.uint32).view(np.float32) if deq.dtype == np.int64 else deq

    def rotate(self, x, cos, sin):
        """x [S,heads,D], cos and sin [S,1,D/2]: half-rotation."""
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        turned = np.concatenate([-b, a], axis=-1)
        cos, sin = np.concatenate([cos, cos], axis=-1), np.concatenate([sin, sin], axis=-1)
        return self.r(self.r(x * cos) + self.r(turned * sin))

    def attention(self, prefix, x):
        r, tokens, d = self.r, x.shape[0], self.head_dim
        q = self.linear(prefix + "q_proj", x).reshape(tokens, self.heads, d)
        k = self.linear(prefix + "k_proj", x).reshape(tokens, self.kv_heads, d)
        v = self.linear(prefix + "v_proj", x).reshape(tokens, self.kv_heads, d)
        if prefix + "q_norm.weight" in self.tensors:
            q, k = self.rms_norm(q, prefix + "q_norm"), self.rms_norm(k, prefix + "k_norm")
        angle = np.arange(tokens, dtype=np.float32)[:, None] * rope_frequencies(self.config, d)
        cos, sin = r(np.cos(angle)[:, None].astype(float)), r(np.sin(angle)[:, None].astype(float))
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        out = np.empty_like(q)
        future = np.triu(np.ones((tokens, tokens), bool), 1)
        for h in range(self.heads):
            kv = h // (self.heads // self.kv_heads)
            scores = r(r(q[:, h] @ k[:, kv].T) / np.sqrt(d))
            scores[future] = -np.inf
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[:, h] = r(r(p / p.sum(axis=-1, keepdims=True)) @ v[:, kv])
        return self.linear(prefix + "o_proj", out.reshape(tokens, -1))

    def mlp(self, prefix, x):
        gate = self.r(silu(self.linear(prefix + "gate_proj", x)))
        return self.linear(prefix + "down_proj", self.r(gate * self.linear(prefix + "up_proj", x)))

    def logits(self, ids):
        x = self.get("model.embed_tokens.weight")[np.asarray(ids)]
        for i in range(self.config["num_hidden_layers"]):
            p = f"model.layers.{i}."
            x = self.r(x + self.attention(p + "self_attn.", self.rms_norm(x, p + "input_layernorm")))
            y = self.rms_norm(x, p + "post_attention_layernorm")
            x = self.r(x + self.mlp(p + "mlp.", y))
        x = self.rms_norm(x, "model.norm")
        if "lm_head.weight" in self.tensors:
            return self.linear("lm_head", x)
        return self.r(x @ self.get("model.embed_tokens.weight").T)


def logits(config, tensors, ids, dtype=None, types=None):
    """[len(ids), vocab_size] in float64."""
    return Model(config, tensors, dtype, types).logits(ids)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def kl(p_logits, q_logits):
    """Mean KL(p || q) in nats a token."""
    p, q = log_softmax(np.float64(p_logits)), log_softmax(np.float64(q_logits))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())

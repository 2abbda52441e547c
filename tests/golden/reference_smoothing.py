"""m4 of outlier suppression in numpy, from the formulas of the specification (anti_outlier.md 1.2
to 1.5) alone, on the float64 model of reference_model.py.

`m4(config, tensors, samples, order)` gives the smoothed tensors; norm biases and created linear
biases are added under `<name>.bias`.
"""
import numpy as np
import reference_model
from tensor_file import Tensor

FLOOR = 1e-5
INPUT, POST, VALUE, UP = "input", "post", "value", "up"  # N1, N2, OV, UD
ORDERS = {"llama": (INPUT, POST, VALUE, UP), "qwen2": (INPUT, POST, VALUE, UP),
          "qwen3": (VALUE, INPUT, UP, POST)}
SOURCES = {INPUT: "input_layernorm", POST: "post_attention_layernorm", VALUE: "self_attn.v_proj",
           UP: "mlp.up_proj"}
TARGETS = {INPUT: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
           POST: ["mlp.gate_proj", "mlp.up_proj"], VALUE: ["self_attn.o_proj"],
           UP: ["mlp.down_proj"]}


class Watched(reference_model.Model):
    """Keeps max, min and max |x| of every linear's input over all samples."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = {}

    def linear(self, name, x):
        high, low = self.seen.get(name, (-np.inf, np.inf))
        self.seen[name] = np.maximum(high, x.max(axis=0)), np.minimum(low, x.min(axis=0))
        return super().linear(name, x)


class Layer:
    """The tensors of one layer while they change; statistics are those of the unchanged one."""

    def __init__(self, model, index):
        self.model, self.prefix = model, f"model.layers.{index}."
        self.tensors = {name.removeprefix(self.prefix): x.astype(np.float64)
                        for name, x in model.tensors.items() if name.startswith(self.prefix)}

    def smooth(self, group, alpha, shift):
        high, low = self.model.seen[self.prefix + TARGETS[group][0]]
        weights = [self.tensors[t + ".weight"] for t in TARGETS[group]]
        columns = np.maximum(FLOOR, np.max([np.abs(w).max(axis=0) for w in weights], axis=0))
        largest = np.maximum(high, -low)
        s = np.maximum(FLOOR, largest**alpha / columns**(1 - alpha))
        if group in (INPUT, POST):
            self.divide_norm(SOURCES[group], s, (high + low) / 2 if shift else None, group)
        else:
            s = self.divide_rows(SOURCES[group], s)
        for target in TARGETS[group]:
            self.tensors[target + ".weight"] = self.tensors[target + ".weight"] * s

    def divide_norm(self, norm, s, shift, group):
        self.tensors[norm + ".weight"] = self.tensors[norm + ".weight"] / s
        if shift is None:
            return
        self.tensors[norm + ".bias"] = -shift / s
        for target in TARGETS[group]:
            bias = self.tensors.get(target + ".bias", 0)
            self.tensors[target + ".bias"] = bias + self.tensors[target + ".weight"] @ shift

    def divide_rows(self, source, s):
        """Mean over the query heads of a KV head; up -> down has a head for each channel."""
        rows = len(self.tensors[source + ".weight"])
        d = self.model.head_dim if source.endswith("v_proj") else 1
        r = s.reshape(rows // d, -1, d).mean(axis=1)
        self.tensors[source + ".weight"] = self.tensors[source + ".weight"] / r.reshape(-1, 1)
        if source + ".bias" in self.tensors:
            self.tensors[source + ".bias"] = self.tensors[source + ".bias"] / r.reshape(-1)
        repeated = np.broadcast_to(r[:, None], (len(r), len(s) // r.size, d))
        return repeated.reshape(-1)


def m4(config, tensors, samples, order=None):
    """{name: float64 Tensor} of every tensor of the smoothed model."""
    kind = config["model_type"]
    alpha, shift = (0.5, True) if kind == "qwen3" else (0.9, False)
    model = Watched(config, tensors)
    for ids in samples:
        model.logits(ids)
    smoothed = {name: Tensor("F64", t.data.astype(np.float64)) for name, t in tensors.items()}
    for i in range(config["num_hidden_layers"]):
        layer = Layer(model, i)
        for group in order or ORDERS[kind]:
            layer.smooth(group, alpha, shift)
        smoothed |= {layer.prefix + name: Tensor("F64", x) for name, x in layer.tensors.items()}
    return smoothed

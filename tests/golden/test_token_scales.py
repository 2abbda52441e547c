"""What calibration propagates behind linears of several schemes, against the numpy judge.

Dynamic linears compute what an engine does: for each token s = max|x|/127, q = rne(x/s),
y = (q . w) s s_n + bias. Static ones take the range that is known so far, of this sample and those
before it. So the static scales of an output say what the linears before them have put out.
"""
import json
from fnmatch import fnmatchcase

import numpy as np
import pytest
import reference_model
import tensor_file
from conftest import GOLDEN, run_tare

CALIB = GOLDEN / "calib_ids.json"
IDS = json.loads(CALIB.read_text())
TINY = 2.0**-23


class Stream(reference_model.Model):
    """The calibrating stream of mean extremes (sections 3 and 4 of the W8A8 specification; 2 of that
    of the schemes): `scheme(name)` says how each linear is treated."""

    def __init__(self, config, tensors, scheme, symmetric=False):
        super().__init__(config, tensors)
        self.scheme, self.symmetric = scheme, symmetric
        self.seen, self.zeros = {}, 0

    def range_of(self, name, x):
        lows, highs = self.seen.setdefault(name, ([], []))
        lows.append(x.min())
        highs.append(x.max())
        low, high = min(np.mean(lows), 0), max(np.mean(highs), 0)
        if self.symmetric:
            return max(max(-low, high) / 127, TINY), 0
        scale = max((high - low) / 255, TINY)
        return scale, np.clip(np.rint(-low / scale) - 128, -128, 127)

    def linear(self, name, x):
        scheme, weight = self.scheme(name), self.get(name + ".weight")
        if scheme != "float":
            scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127, TINY)
            weight = np.clip(np.rint(weight / scale), -127, 127) * scale
        if scheme == "w8a8":
            s, offset = self.range_of(name, x)
            x = (np.clip(np.rint(x / s + offset), -128, 127) - offset) * s
        elif scheme == "w8a8_dynamic":
            out = np.zeros_like(x)
            for t, token in enumerate(x):
                s = np.abs(token).max() / 127
                self.zeros += s == 0
                if s > 0:
                    out[t] = np.rint(token / s) * s
            x = out
        y = x @ weight.T
        return y + self.get(name + ".bias") if name + ".bias" in self.tensors else y


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Qwen2, whose q, k, v have biases; one token of the prompts has an embedding of zeros, so that
    its input of the first q, k, v is zero and their output the bias."""
    folder = tmp_path_factory.mktemp("model") / "model"
    folder.mkdir()
    tensors = tensor_file.read_folder(GOLDEN / "qwen2" / "model")
    embedding = tensors["model.embed_tokens.weight"].data.copy()
    embedding[IDS[1][4]] = 0
    tensors["model.embed_tokens.weight"] = tensor_file.Tensor("F32", embedding)
    tensor_file.write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text((GOLDEN / "qwen2" / "model" / "config.json").read_text())
    return folder


MIXES = {
    "attention": ("w8a8", ["*.self_attn.*=w8a8_dynamic"]),
    "mlp": ("w8a8", ["*.mlp.*=w8a8_dynamic"]),
    "all but down": ("w8a8_dynamic", ["*.down_proj=w8a8"]),
    "all but the last": ("w8a8_dynamic", ["model.layers.3.mlp.down_proj=w8a8"]),
    "three": ("w8a8_dynamic", ["*.o_proj=w8a16", "*.gate_proj=float", "*.up_proj=float",
                               "*.down_proj=w8a8"]),
}


def scheme_by(default, mix):
    def scheme(name):
        if name == "lm_head":
            return "float"
        kinds = (rule.split("=") for rule in mix)
        return next((kind for pattern, kind in kinds if fnmatchcase(name, pattern)), default)
    return scheme


@pytest.mark.parametrize("cpu", ["scalar", "auto"])
@pytest.mark.parametrize("mix", MIXES)
def test_static_scales_behind_dynamic_linears(mix, cpu, model, tmp_path):
    default, rules = MIXES[mix]
    out = tmp_path / "out"
    done = run_tare("quantize", model, "--out", out, "--calib", CALIB, "--dtype", "float32",
                    "--compute", "fp32", "--save", "safe_tensor", "--scheme", default, "--mix",
                    ",".join(rules), "--cpu", cpu)
    assert done.returncode == 0, done.stderr
    stream = Stream(json.loads((model / "config.json").read_text()),
                    tensor_file.read_folder(model), scheme_by(default, rules))
    for ids in IDS:
        stream.logits(ids)
    assert stream.zeros or mix == "mlp"
    ours = tensor_file.read_folder(out)
    static = {n.removesuffix(".input_scale") for n in ours if n.endswith(".input_scale")}
    assert static == set(stream.seen)
    for name, (lows, highs) in stream.seen.items():
        low, high = min(np.mean(lows), 0), max(np.mean(highs), 0)
        scale = max((high - low) / 255, TINY)
        # noise of one FP32 rounding on each output moves scales by at most 5e-4
        assert abs(ours[name + ".input_scale"].data[0] / scale - 1) <= 5e-4, name
        assert ours[name + ".input_offset"].data[0] == np.rint(-low / scale) - 128, name


@pytest.mark.parametrize("save", ["safe_tensor", "compressed-tensors"])
def test_symmetric_scales(save, model, tmp_path):
    """Offset 0, with which calibration goes on: 127 steps to the mean extreme farther from 0."""
    flags = ["--act-sym"] if save == "safe_tensor" else []  # the default of the other
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", CALIB, "--dtype",
                    "float32", "--compute", "fp32", "--save", save, *flags)
    assert done.returncode == 0, done.stderr
    stream = Stream(json.loads((model / "config.json").read_text()),
                    tensor_file.read_folder(model), scheme_by("w8a8", []), symmetric=True)
    for ids in IDS:
        stream.logits(ids)
    ours = tensor_file.read_folder(tmp_path / "out")
    assert len(stream.seen) == 28
    for name, (lows, highs) in stream.seen.items():
        scale = max(-np.mean(lows), np.mean(highs)) / 127
        assert abs(ours[name + ".input_scale"].data[0] / scale - 1) <= 5e-4, name
        if save == "compressed-tensors":
            assert name + ".input_zero_point" not in ours
            continue
        assert ours[name + ".input_offset"].data[0] == 0
        deq = ours[name + ".input_scale"].data * ours[name + ".weight_scale"].data.ravel()
        bias = ours[name + ".bias"].data if name + ".bias" in ours else np.zeros_like(deq)
        np.testing.assert_array_equal(ours[name + ".quant_bias"].data,
                                      np.rint(bias.astype(np.float64) / deq), name)

"""`--kv-cache c8` against keys and values that PyTorch saw in the float models, and against a numpy
model that computes as an engine does."""
import json

import numpy as np
import pytest
import tensor_file
from conftest import GOLDEN, SHARED, run_tare
from reference_model import Model

CALIB = GOLDEN / "calib_ids.json"
EVERY_LINEAR = "*_proj"
BEFORE_ROPE, LAST_SAMPLE = "scale_before_rope|", "scale_last_sample|"


def find_models():
    """{name: observed scales and the model's folder}, those carried first."""
    found = {}
    for root in (GOLDEN, SHARED / "golden"):
        for path in sorted(root.glob("observed/kv-*.safetensors")):
            name = path.stem.removeprefix("kv-")
            found.setdefault(name, (path, root / name / "model"))
    return found


MODELS = find_models()


def kv_scales(model, out, *flags):
    """{linear: scales} of an output that passes verify, and all of its tensors."""
    done = run_tare("quantize", model, "--out", out, "--calib", CALIB, "--kv-cache", "c8",
                    "--dtype", "float32", *flags)
    assert done.returncode == 0, done.stderr
    tensors = tensor_file.read_folder(out)
    for name in [name for name in tensors if name.endswith(".kv_cache_offset")]:
        assert not tensors.pop(name).data.any()
    return {name.removesuffix(".kv_cache_scale"): tensors.pop(name).data
            for name in list(tensors) if name.endswith(".kv_cache_scale")}, tensors


def distance(scales, expected):
    return np.concatenate([np.abs(scales[name] / expected[name] - 1) for name in expected])


@pytest.mark.parametrize("name", MODELS)
def test_scales_of_the_float_stream(name, tmp_path):
    """Every linear float: the calibrating stream is the float model's. Every layer, keys behind
    their norm and rotation, all samples."""
    observed, model = MODELS[name]
    tensors = tensor_file.read(observed)

    def rule(prefix):
        return {n.removeprefix(prefix): t.data for n, t in tensors.items() if n.startswith(prefix)}

    expected = rule("scale|")
    scales, _ = kv_scales(model, tmp_path / "out", "--disable-names", EVERY_LINEAR)
    assert scales.keys() == expected.keys() and len(scales) == 8
    assert distance(scales, expected).max() < 1e-5
    # which no other rule gives
    assert distance(scales, rule(BEFORE_ROPE)).max() > 0.05
    assert distance(scales, rule(LAST_SAMPLE)).max() > 0.05


class Watched(Model):
    """Keeps the largest magnitudes of what goes into the key/value cache."""

    def __init__(self, config, tensors, types):
        super().__init__(config, tensors, types=types)
        self.max = {}

    def keep(self, name, x):
        reach = np.abs(x.reshape(x.shape[0], -1)).max(axis=0)
        self.max[name] = np.maximum(self.max.get(name, 0), reach)

    def attention(self, prefix, x):
        self.prefix, self.rotated = prefix, 0
        return super().attention(prefix, x)

    def linear(self, name, x):
        y = super().linear(name, x)
        if name.endswith(".v_proj"):
            self.keep(name, y)
        return y

    def rotate(self, x, cos, sin):
        y = super().rotate(x, cos, sin)
        self.rotated += 1
        if self.rotated == 2:  # queries, then keys
            self.keep(self.prefix + "k_proj", y)
        return y


def test_scales_of_the_calibrating_stream(tmp_path):
    """Of the linears as they are quantized, not of the float model. Dynamic ones: what they compute
    while calibrating is what an engine computes."""
    model = MODELS["qwen3"][1]
    scales, tensors = kv_scales(model, tmp_path / "out", "--scheme", "w8a8_dynamic")
    types = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    engine = Watched(json.loads((model / "config.json").read_text()), tensors, types)
    for ids in json.loads(CALIB.read_text()):
        engine.logits(ids)
    expected = {name: x / 127 for name, x in engine.max.items()}
    assert scales.keys() == expected.keys()
    far = distance(scales, expected)
    plain, _ = kv_scales(model, tmp_path / "float", "--disable-names", EVERY_LINEAR)
    float_stream = distance(plain, expected)
    first = {n: x for n, x in expected.items() if ".layers.0." in n}
    assert distance(scales, first).max() < 1e-5
    # an input within rounding of a half goes the other way in FP32, and moves a maximum
    assert np.median(far) < 1e-4 and np.quantile(far, 0.95) < 0.01
    assert np.median(float_stream) > 1e-3 > 10 * np.median(far)

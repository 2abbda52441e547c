"""Outlier suppression of whole models: what must stay (the function), and what must not be mixed up
(the order of groups, one sample for all). Every linear is left float, so that the output is the
smoothed model itself."""
import json

import numpy as np
import pytest
import reference_model
import reference_smoothing
import tensor_file
from conftest import GOLDEN, run_tare

MODELS = ("llama", "qwen2", "qwen3")
METHODS = ("m1", "m2", "m3", "m4", "m5", "m6")
SAMPLES = json.loads((GOLDEN / "calib_ids.json").read_text())
NORM_TOLERANCE, BIAS_TOLERANCE = 5e-6, 1e-5  # section 4 of the specification
FUNCTION_TOLERANCE = 1e-5  # of the largest logit
SWAPS = {  # of two groups that share a weight: v_proj or up_proj
    "N1, OV": (reference_smoothing.INPUT, reference_smoothing.VALUE),
    "N2, UD": (reference_smoothing.POST, reference_smoothing.UP),
}


def config_of(model):
    return json.loads((GOLDEN / model / "model" / "config.json").read_text())


def source_of(model):
    return tensor_file.read_folder(GOLDEN / model / "model")


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory):
    """smoothed(model, method, flags): the tensors that tare writes, made once."""
    made = {}

    def tensors(model, method, *flags):
        key = (model, method, *flags)
        if key not in made:
            out = tmp_path_factory.mktemp("smoothed") / "out"
            done = run_tare("quantize", GOLDEN / model / "model", "--out", out, "--calib",
                            GOLDEN / "calib_ids.json", "--anti-method", method, "--disable-names",
                            "*", "--dtype", "float32", "--compute", "fp32", "--save",
                            "safe_tensor", *flags)
            assert done.returncode == 0, done.stderr
            made[key] = tensor_file.read_folder(out)
        return made[key]
    return tensors


def norms(tensors):
    """The weights of the norms that are smoothed."""
    return {name: t.data for name, t in tensors.items() if name.endswith("layernorm.weight")}


# ---- The function stays

@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_function(model, method, smoothed):
    config, before, after = config_of(model), source_of(model), smoothed(model, method)
    changed = [name for name, x in norms(before).items() if not (norms(after)[name] == x).all()]
    assert changed, "nothing was smoothed"
    for ids in SAMPLES:
        want = reference_model.logits(config, before, ids)
        error = np.abs(reference_model.logits(config, after, ids) - want).max()
        assert error <= min(FUNCTION_TOLERANCE * np.abs(want).max(), 1e-4)


# ---- The order of groups

def differences(got, want):
    """Largest relative difference of a norm's weight."""
    return max(np.abs(got[name] / x - 1).max() for name, x in norms(want).items())


def order_with(model, a, b):
    order = list(reference_smoothing.ORDERS[model])
    i, j = order.index(a), order.index(b)
    order[i], order[j] = order[j], order[i]
    return order


@pytest.mark.parametrize("model", MODELS)
def test_m4_against_numpy(model, smoothed):
    ours = smoothed(model, "m4")
    for name, want in reference_smoothing.m4(config_of(model), source_of(model), SAMPLES).items():
        error = np.abs(ours[name].data - want.data)
        if name.endswith(".bias"):
            assert error.max() <= BIAS_TOLERANCE * np.abs(want.data).max(), name
        else:
            assert (error <= NORM_TOLERANCE * np.abs(want.data)).all(), name


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("model", ("llama", "qwen3"))
def test_order_matters(model, swap, smoothed):
    """In another order some norm differs by per cents from what tare, and the reference, give."""
    order = order_with(model, *SWAPS[swap])
    right = reference_smoothing.m4(config_of(model), source_of(model), SAMPLES)
    other = reference_smoothing.m4(config_of(model), source_of(model), SAMPLES, order)
    golden = norms(tensor_file.read(GOLDEN / model / "anti-m4" / "tensors.safetensors"))
    assert differences(golden, right) <= NORM_TOLERANCE
    for got in golden, norms(smoothed(model, "m4")):
        assert differences(got, other) > 0.01


# ---- One sample or all

@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_which_samples_count(model, method, smoothed):
    """m3 looks at the first alone; to the others they all matter."""
    one, every = smoothed(model, method, "--samples", "1"), smoothed(model, method)
    assert set(one) == set(every)
    same = all((one[name].data == every[name].data).all() for name in every)
    assert same == (method == "m3")

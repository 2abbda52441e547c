"""FAQuantizer against an independent numpy computation of spec fa3.md 1.3, 1.4 and 1.6, and the
table of 1.9. numpy arrays here; tests/oracle has torch."""
import copy
import logging
import types

import numpy as np
import pytest

import tare
from tare import FAQuantizer, fa_tensors

LOG = logging.getLogger("test")


def config(**changes):
    return types.SimpleNamespace(**{"num_attention_heads": 4, "hidden_size": 32,
                                    "num_key_value_heads": 2, **changes})


def window(row, share):
    s = np.sort(row.ravel())
    if share == 1.0:
        return s[0], s[-1]
    m = max(1, int(share * s.size))
    width = s[m - 1:].astype(np.float64) - s[:s.size - m + 1].astype(np.float64)
    i = int(np.argmin(width))
    return s[i], s[i + m - 1]


def expected_scales(samples, kind):
    """samples: arrays [B,H,S,D]; FP32 [H,1]."""
    ends = np.array([[window(x[:, h], 1.0 if kind == "v" else 0.9999) for h in range(x.shape[1])]
                     for x in samples], np.float32)
    low, high = ends[..., 0].min(0), ends[..., 1].max(0)
    reach = np.maximum(np.maximum(0, -low), np.maximum(0, high)).astype(np.float32)
    return np.maximum(reach / np.float32(127), np.float32(2**-23))[:, None]


def observe(quantizer, samples, layout=None):
    quantizer.enable_calibration()
    for sample in samples:
        for kind, x in zip("qkv", sample):
            assert quantizer.quant(x, kind, **({"layout": layout} if layout else {})) is x
    quantizer.disable_calibration()
    return quantizer


def make_samples(seed, lengths=(700, 3, 41), batch=2):
    rng = np.random.default_rng(seed)
    return [[rng.standard_t(3, (batch, heads, n, 8)).astype(np.float32) for heads in (4, 2, 2)]
            for n in lengths]


@pytest.mark.parametrize("layout", ["BHSD", "BSHD"])
def test_scales_equal_numpys(layout):
    samples = make_samples(0)
    given = samples if layout == "BHSD" else [[x.transpose(0, 2, 1, 3) for x in s] for s in samples]
    quantizer = observe(FAQuantizer(config(), LOG, layout=layout), given)
    scales, offsets = quantizer.export_quant_params()
    for i, kind in enumerate("qkv"):
        assert np.array_equal(scales[i], expected_scales([s[i] for s in samples], kind))
        assert offsets[i].dtype == np.int8 and offsets[i].shape == scales[i].shape
        assert not offsets[i].any()
    per_call = observe(FAQuantizer(config(), LOG), given, layout).export_quant_params()[0]
    assert all(np.array_equal(a, b) for a, b in zip(scales, per_call))


def test_heads_of_constant_value_and_strides():
    x = np.broadcast_to(np.float32([1, 2, 3, 4])[None, :, None, None], (2, 4, 5, 8))
    wide = np.zeros((2, 4, 10, 16), np.float32)
    wide[:, :, ::2, ::-2] = x
    q = observe(FAQuantizer(config(num_key_value_heads=4), LOG), [[wide[:, :, ::2, ::-2], x, x]])
    assert np.array_equal(q.export_quant_params()[0][0].ravel(),
                          np.float32([1, 2, 3, 4]) / np.float32(127))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes(dtype):
    samples = [[x.astype(dtype) for x in s] for s in make_samples(1)]
    scales = observe(FAQuantizer(config(), LOG), samples).export_quant_params()[0]
    for i, kind in enumerate("qkv"):
        wide = expected_scales([s[i].astype(np.float32) for s in samples], kind)
        assert scales[i].dtype == dtype
        assert np.array_equal(scales[i], wide.astype(dtype))


def test_a_second_calibration_starts_anew():
    first, second = make_samples(2), [[x / 100 for x in s] for s in make_samples(3)]
    quantizer = observe(FAQuantizer(config(), LOG), first)
    assert quantizer.is_calibrated()
    scales = observe(quantizer, second).export_quant_params()[0]
    assert np.array_equal(scales[0], expected_scales([s[0] for s in second], "q"))
    quantizer.reset()
    assert not quantizer.is_calibrated() and not copy.deepcopy(quantizer).is_calibrated()


def score(x):
    """1.6 with numpy, for values whose bins no rounding can touch."""
    a = np.abs(x).ravel().astype(np.float32)
    h, edges = np.histogram(a, 100, (a.min(), a.max()))
    j = 100
    while j > 2 and not h[j - 1] + h[j - 2] > 0.002 * a.size:
        j -= 1
    return a.max() / edges[j]


def test_fa_amp_takes_the_hardest():
    samples = {f"model.layers.{i}.self_attn": make_samples(10 + i, (900,)) for i in range(4)}
    quantizers = {name: observe(FAQuantizer(config(), LOG), s) for name, s in samples.items()}
    worst = {name: max(score(x) for x in s[0]) for name, s in samples.items()}
    ranked = sorted(worst, key=worst.get, reverse=True)
    for amp in range(6):
        kept = {name.rsplit(".", 2)[0] for name in fa_tensors(quantizers, fa_amp=amp)}
        assert kept == set(ranked[amp:])
    names = list(fa_tensors(quantizers))
    assert names[:6] == [f"model.layers.0.self_attn.fa_{k}.{w}" for w in ("scale", "offset")
                         for k in "qkv"]
    with pytest.raises(ValueError, match="fa_amp"):
        fa_tensors(quantizers, fa_amp=-1)


@pytest.mark.parametrize("arguments, error, text", [
    ((config(), None), TypeError, "logger must be Logger, not NoneType."),
    ((types.SimpleNamespace(num_attention_heads=4), LOG), AttributeError,
     "FAQuantizer's config needs attributes: 'hidden_size'"),
    ((config(num_attention_heads=4.0), LOG), TypeError,
     "num_attention_heads in config must be int, not float."),
    ((config(hidden_size=True), LOG), TypeError, "hidden_size in config must be int, not bool."),
    ((config(num_key_value_heads=None), LOG), TypeError,
     "num_key_value_heads in config must be int, not NoneType."),
    ((config(num_attention_heads=0), LOG), ValueError, "`num_attention_heads` cannot be zero."),
])
def test_construction_refuses(arguments, error, text):
    with pytest.raises(error) as caught:
        FAQuantizer(*arguments)
    assert str(caught.value) == text


def test_construction_tells(caplog):
    caplog.set_level(logging.INFO)
    c = config()
    FAQuantizer(c, LOG)
    assert "Using Grouped Query Attention (GQA): num_key_value_heads=2, num_head=4" in caplog.text
    del c.num_key_value_heads
    FAQuantizer(c, LOG)
    assert c.num_key_value_heads == 4 and "assuming Multi-head Attention by default." in caplog.text


X = np.ones((1, 4, 3, 8), np.float32)


def test_quant_checks_in_order():
    quantizer = FAQuantizer(config(num_key_value_heads=4), LOG)
    with pytest.raises(TypeError, match="states_tensor must be Tensor, not list."):
        quantizer.quant([1], "z")
    assert quantizer.quant(X[0], "z") is not None  # not calibrating: nothing else is looked at
    quantizer.enable_calibration()
    with pytest.raises(ValueError, match="'z' is not a valid TensorType"):
        quantizer.quant(X, "z")
    with pytest.raises(ValueError, match=r"not enough values to unpack \(expected 4, got 3\)"):
        quantizer.quant(X[0], "q")
    with pytest.raises(ValueError, match="layout"):
        quantizer.quant(X, "q", layout="SBHD")
    quantizer.quant(X, tare.TensorType.Q)
    with pytest.raises(ValueError, match="5 heads"):
        for kind in "kvq":
            quantizer.quant(X if kind != "q" else np.ones((1, 5, 3, 8), np.float32), kind)
    for value in (np.nan, np.inf):
        bad = X.copy()
        bad[0, 1, 2, 3] = value
        fresh = FAQuantizer(config(num_key_value_heads=4), LOG)
        fresh.enable_calibration()
        with pytest.raises(ArithmeticError, match="head 1 of fa_v"):
            fresh.quant(bad, "v")
    for name, value in (("bit", 4), ("sym", False), ("tp_size", 2)):
        with pytest.raises(ValueError, match=name):
            quantizer.configure(**{"bit": 8, "sym": True, name: value})
    quantizer.configure(8, True)


def test_missing_types():
    quantizer = FAQuantizer(config(num_key_value_heads=4), LOG)
    quantizer.enable_calibration()
    quantizer.disable_calibration()  # no forward at all is no fault
    quantizer.enable_calibration()
    quantizer.quant(X, "q")
    quantizer.quant(X, "k")
    for act in (lambda: quantizer.quant(X, "q"), quantizer.disable_calibration,
                quantizer.export_quant_params):
        with pytest.raises(RuntimeError, match=r"Missing qkv types:\{'v'\}"):
            act()

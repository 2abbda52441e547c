"""W4A8_DYNAMIC experts against what the reference's service wrote (specification: spec/schemes.md 6),
and against its formulas on other weights."""
import json

import numpy as np
import pytest
import tensor_file
from conftest import GOLDEN, SHARED, run_tare

ROOTS = [SHARED / "golden", GOLDEN]
CASES = sorted({path.parent.relative_to(root).as_posix(): path.parent for root in ROOTS[::-1]
                for path in root.glob("*/*/quant_model_description.json")
                if "W4A8_DYNAMIC" in path.read_text()}.values())
EPS = np.float32(2.0 ** -23)


def quantize(model, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--scheme", "w8a8_dynamic",
                    "--mix", "*.experts.*=w4a8_dynamic", *flags)
    assert done.returncode == 0, done.stderr
    return tensor_file.read_folder(out), json.loads((out / "quant_model_description.json").read_text())


def unpack(rows):
    """Byte row i: rows 2i in the low nibbles, 2i+1 in the high ones, two's complement."""
    bits = rows.view(np.uint8)
    nibbles = np.stack([bits & 15, bits >> 4], 1).reshape(2 * len(rows), -1).astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles)


def method_of(settings):
    """Of the experts' weights."""
    configs = [config for process in settings["quant_config"]["process"]
               for config in process.get("configs", [process])]
    methods = {config["qconfig"]["weight"]["method"] for config in configs
               if config.get("qconfig", {}).get("weight", {}).get("dtype") == "int4"}
    method, = methods
    return method


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_experts_of_the_reference(case, tmp_path):
    """FP32: at most 0.1 % of integers differ, 99 % of scales by at most 1e-6 (minmax: none does). In
    BF16 the reference rounds every operation, as --compat does: 0.1 % of integers, 99 % of scales
    within 2 %."""
    settings = json.loads((case / "case.json").read_text())
    method, bf16 = method_of(settings), settings["dtype"] == "bf16"
    flags = ["--dtype", "bfloat16", "--compat", "msmodelslim"] if bf16 else ["--dtype", "float32"]
    ours, types = quantize(case.parent / "model", tmp_path / "out", "--weight-method", method, *flags)
    golden = tensor_file.read(case / "tensors.safetensors")
    described = json.loads((case / "quant_model_description.json").read_text())
    parts = {name for name in golden if described[name] == "W4A8_DYNAMIC"}
    assert len(parts) >= 4 * 24
    differ, scales = [], []
    for name in parts:
        a, b = ours[name], golden[name]
        assert types[name] == "W4A8_DYNAMIC" and (a.tag, a.data.shape) == (b.tag, b.data.shape), name
        if name.endswith(".weight"):
            differ.append(unpack(a.data) != unpack(b.data))
        elif name.endswith(".weight_scale"):
            scales.append(np.abs(a.data / b.data - 1).ravel())
        elif name.endswith(".scale_bias"):
            assert bf16 or np.abs(a.data - b.data).max() <= 2e-7 * np.abs(b.data).max() + 1e-6
        else:
            assert name.endswith(".weight_offset") and not a.data.any()
    differ, scales = np.concatenate([d.ravel() for d in differ]), np.concatenate(scales)
    if method == "minmax":
        assert not differ.any() and not scales.any()
    assert differ.mean() <= 1e-3
    assert (scales > (0.02 if bf16 else 1e-6)).mean() <= 0.01


# ---- the formulas, on other weights

def to_int4(w, scale):
    return np.clip(np.rint(w / scale), -8, 7).astype(np.float32)


def search(w):
    """Section 6.1, all rows of a matrix together, in FP32 with sums in FP64."""
    scale = np.maximum(np.abs(w).max(1, keepdims=True) / np.float32(7), EPS)
    keep, q = scale, to_int4(w, scale)

    def error(q, scale):
        return np.square(w - q * scale, dtype=np.float32).mean(1, keepdims=True, dtype=np.float64)
    best = error(q, scale)
    for _ in range(50):
        dot = (w * q).sum(1, keepdims=True, dtype=np.float64)
        c = np.float32(dot / np.maximum((q * q).sum(1, keepdims=True, dtype=np.float64), 1e-30))
        with np.errstate(invalid="ignore", divide="ignore"):
            q = to_int4(w, c)
            e = error(q, c)
        still = ((best - e) / np.maximum(best, 1e-4) < 1e-10) | (np.abs(best - e) < 1e-10)
        if still.all():
            break
        keep, best = np.where(e < best, c, keep), np.where(e < best, e, best)
    return keep, to_int4(w, keep)


EXPERT = "model.layers.1.block_sparse_moe.experts.3."


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    """Mixtral's tiny model with other experts: a row of zeros, one of one value, one of large and
    tiny ones, normal and uniform ones."""
    folder = tmp_path_factory.mktemp("int4") / "model"
    folder.mkdir()
    for path in (GOLDEN / "mixtral/model").iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    rng = np.random.default_rng(14)
    tensors = tensor_file.read_folder(GOLDEN / "mixtral/model")
    for name, t in tensors.items():
        if ".experts." in name:
            w = rng.normal(0, 0.1, t.data.shape)
            w[1], w[2], w[3] = 0, 0.25, rng.choice([1e-4, -3e-4, 2.0], t.data.shape[1])
            w[4] = rng.uniform(-1, 1, t.data.shape[1])
            tensors[name] = tensor_file.Tensor("F32", w.astype(np.float32))
    tensor_file.write(folder / "model.safetensors", tensors)
    return folder, tensors


@pytest.mark.parametrize("method", ["ssz", "minmax"])
def test_formulas(method, other_weights, tmp_path):
    folder, source = other_weights
    ours, _ = quantize(folder, tmp_path / "out", "--weight-method", method, "--dtype", "bfloat16")
    close = []
    for part, slices in (("w1", 1), ("w2", 16), ("w3", 1)):
        w = source[EXPERT + part + ".weight"].data
        scale = np.maximum(np.abs(w).max(1, keepdims=True) / np.float32(7), EPS)
        wanted = (scale, to_int4(w, scale)) if method == "minmax" else search(w)
        scale, q = ours[EXPERT + part + ".weight_scale"], unpack(ours[EXPERT + part + ".weight"].data)
        assert scale.tag == "F32"  # whatever the serving dtype
        np.testing.assert_array_equal(q, to_int4(w, scale.data))
        close.append(np.abs(scale.data / wanted[0] - 1).ravel() <= 1e-6)
        # never a worse scale than the reference's search finds, whose rows stop together
        better = np.square(w - q * scale.data).sum(1) <= np.square(w - wanted[1] * wanted[0]).sum(1) + 1e-7
        assert better.all()
        sums = 8 * (q * scale.data.astype(np.float64)).reshape(len(q), slices, -1).sum(-1)
        np.testing.assert_allclose(ours[EXPERT + part + ".scale_bias"].data, sums, rtol=1e-6, atol=1e-9)
        assert not q[1].any() and scale.data[1] == EPS
        assert (q[2] == 7).all()
    assert np.concatenate(close).mean() >= 0.99

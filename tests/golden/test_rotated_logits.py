"""Rotated models compute what they computed before (specification: spec/rotation.md): against the logits
that transformers computed of the originals."""
import json
import shutil

import numpy as np
import pytest
import tensor_file
from conftest import GOLDEN, run_tare
from test_logits import MODELS, TOLERANCE, expected, folders

FLOAT = ["--scheme", "w8a8_dynamic", "--mix", "*=float", "--dtype", "float32", "--no-verify"]


def in_fp32(source, folder):
    """The same weights, so that turning them rounds them to FP32 alone."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    tensors = {name: tensor_file.Tensor("F32", t.data.astype(np.float32))
               for name, t in tensor_file.read_folder(source).items()}
    tensor_file.write(folder / "model.safetensors", tensors)
    return folder


def rotate(model, out, *flags):
    """As a float checkpoint."""
    done = run_tare("quantize", model, "--out", out, *FLOAT, *flags)
    assert done.returncode == 0, done.stderr
    done = run_tare("verify", out, "--base", model)
    assert done.returncode == 0, done.stdout
    weights, = out.glob("quant_model_weights*.safetensors")
    weights.rename(out / "model.safetensors")
    for path in out.glob("quant_model*"):
        path.unlink()
    return out


@pytest.mark.parametrize("flags", [["--rotate", "7"], ["--rotate"]], ids=" ".join)
@pytest.mark.parametrize("model", MODELS)
def test_the_same_logits(model, flags, library, tmp_path):
    """With biases, norms of heads, tied heads, experts and latent attention; and no weight is left as it
    was but those that the stream does not pass."""
    source = in_fp32(folders(model)[-1], tmp_path / "source")
    rotated = rotate(source, tmp_path / "rotated", *flags)
    with library.model(rotated) as m:
        for ids, want in expected(model):
            assert np.abs(m.logits(ids) - want).max() <= TOLERANCE
    before, after = (tensor_file.read_folder(folder) for folder in (source, rotated))
    same = {name for name in after if name in before
            and np.array_equal(before[name].data, after[name].data)}
    assert all(name.endswith(("_norm.weight", "_a_layernorm.weight", "q_b_proj.weight", "_bias",
                              "_proj.bias")) for name in same)
    norms = [name for name in after if name.endswith(("input_layernorm.weight", "model.norm.weight"))]
    assert norms and all((after[name].data == 1).all() for name in norms)


@pytest.mark.parametrize("flags", [[], ["--rotate"]], ids=" ".join)
@pytest.mark.parametrize("model", [m for m in MODELS if "deepseek" not in m])
def test_balanced(model, flags, library, tmp_path):
    """Queries and keys, up and down (of dense layers), rotated too."""
    own = MODELS[model] / "calib_ids.json"
    calib = own if own.exists() else GOLDEN / "calib_ids.json"
    up = [] if model in ("qwen3_moe", "mixtral") else ["--anti-method", "balance"]
    source = in_fp32(folders(model)[-1], tmp_path / "source")
    balanced = rotate(source, tmp_path / "balanced", *up, "--fa-quant", "--fa-balance", "--calib", calib, *flags)
    with library.model(balanced) as m:
        for ids, want in expected(model):
            assert np.abs(m.logits(ids) - want).max() <= TOLERANCE
    moved = tensor_file.read(balanced / "tare" / "tare_stats.safetensors")
    assert any(".smooth" in name for name in moved)


@pytest.mark.parametrize("part", ["r1", "r2"])
def test_one_of_both(part, library, tmp_path):
    source = in_fp32(folders("qwen2")[-1], tmp_path / "source")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"rotation: {{seed: 3, {part}: false}}\n")
    rotated = rotate(source, tmp_path / "rotated", "--recipe", recipe)
    with library.model(rotated) as m:
        for ids, want in expected("qwen2"):
            assert np.abs(m.logits(ids) - want).max() <= TOLERANCE
    before, after = (tensor_file.read_folder(folder) for folder in (source, rotated))
    name = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(before[name].data, after[name].data) == (part == "r1")
    # R2 alone changes the length of no head's rows, R1 alone the length of no row
    v = [t["model.layers.0.self_attn.v_proj.bias"].data for t in (before, after)]
    assert np.allclose(*v) == (part == "r2")
    assert np.allclose(*(np.square(x.reshape(2, -1)).sum(1) for x in v))


def test_by_hand(tmp_path):
    """The embedding and o_proj of Qwen2 by R1 and R2 as their effect on unit vectors: R1 is E^-1 E' (E has
    full rank), and every element of it is 1/sqrt(h) or its negative."""
    source = in_fp32(folders("qwen2")[-1], tmp_path / "source")
    rotated = rotate(source, tmp_path / "rotated", "--rotate")
    before, after = (tensor_file.read_folder(folder) for folder in (source, rotated))
    e, turned = (t["model.embed_tokens.weight"].data.astype(np.float64) for t in (before, after))
    r1 = np.linalg.lstsq(e, turned, rcond=None)[0]
    np.testing.assert_allclose(np.abs(r1), 1 / np.sqrt(len(r1)), rtol=1e-4)
    np.testing.assert_allclose(r1 @ r1.T, np.eye(len(r1)), atol=1e-4)
    norm = before["model.layers.1.input_layernorm.weight"].data.astype(np.float64)
    q = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_allclose(after[q].data, (before[q].data * norm) @ r1, atol=1e-4)
    down = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_allclose(after[down].data, r1.T @ before[down].data, atol=1e-4)


# ---- aligned by what samples show

def aligned(model, source, out, *flags):
    """With all linears float there is still something to calibrate: what attention keeps."""
    own = MODELS[model] / "calib_ids.json"
    calib = own if own.exists() else GOLDEN / "calib_ids.json"
    attention = ["--fa-quant"] if "deepseek" in model else ["--kv-cache", "c8"]
    done = run_tare("quantize", source, "--out", out, *FLOAT, "--rotate", "--calib", calib, *attention,
                    *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "tare_run.json").read_text())["rotation_aligned"]
    done = run_tare("verify", out, "--base", source)
    assert done.returncode == 0, done.stdout
    weights, = out.glob("quant_model_weights*.safetensors")
    return tensor_file.read(weights), tensor_file.read(out / "tare" / "tare_stats.safetensors")


@pytest.mark.parametrize("model", [m for m in MODELS if m != "deepseek_v3_mtp"])
def test_aligned_logits(model, library, tmp_path):
    source = in_fp32(folders(model)[-1], tmp_path / "source")
    tensors, _ = aligned(model, source, tmp_path / "out")
    extra = (".kv_cache_scale", ".kv_cache_offset", ".scale", ".offset")
    tensor_file.write(tmp_path / "out" / "model.safetensors",
                      {name: t for name, t in tensors.items() if not name.endswith(extra)})
    for path in (tmp_path / "out").glob("quant_model*"):
        path.unlink()
    with library.model(tmp_path / "out") as m:
        for ids, want in expected(model):
            assert np.abs(m.logits(ids) - want).max() <= TOLERANCE
    norms = [t.data for name, t in tensors.items() if name.endswith("input_layernorm.weight")]
    assert {-1.0, 1.0} == set(np.unique(norms))


def test_alignment_by_hand(tmp_path):
    """The first right singular vector of the unit means of the layers behind the second goes to (1, ..., 1) /
    sqrt(h), by one mirror; norms have the signs of the means that are then left."""
    source = in_fp32(folders("qwen3")[-1], tmp_path / "source")
    after, statistics = aligned("qwen3", source, tmp_path / "out")
    before = tensor_file.read_folder(rotate(source, tmp_path / "plain", "--rotate"))
    means = {name.removesuffix(".rotated_mean"): t.data.astype(np.float64)
             for name, t in statistics.items() if name.endswith(".rotated_mean")}
    assert len(means) == 8
    rows = np.array([m / np.linalg.norm(m) for name, m in means.items()
                     if int(name.split(".")[2]) >= 2])
    u = np.linalg.svd(rows)[2][0]
    ones = np.ones(len(u)) / np.sqrt(len(u))
    v = u * np.sign(u.sum()) - ones
    mirror = np.eye(len(u)) - 2 * np.outer(v, v) / (v @ v)
    name = "model.embed_tokens.weight"
    np.testing.assert_allclose(after[name].data, before[name].data @ mirror, atol=2e-5)
    name = "model.layers.3.mlp.down_proj.weight"
    np.testing.assert_allclose(after[name].data, mirror @ before[name].data, atol=2e-5)
    for norm, mean in means.items():
        left = mean @ mirror
        clear = np.abs(left) > 1e-5
        np.testing.assert_array_equal(after[norm].data[clear], np.where(left < 0, -1, 1)[clear])
    name = "model.layers.2.self_attn.k_proj.weight"
    signs = after["model.layers.2.input_layernorm.weight"].data
    np.testing.assert_allclose(after[name].data, before[name].data @ mirror * signs, atol=2e-5)


def test_means_by_hand(tmp_path):
    """Of what the norms of the rotated model put out: x / rms(x), of the first layer's of embeddings."""
    source = in_fp32(folders("qwen3")[-1], tmp_path / "source")
    _, statistics = aligned("qwen3", source, tmp_path / "out")
    plain = tensor_file.read_folder(rotate(source, tmp_path / "plain", "--rotate"))
    ids = json.loads((GOLDEN / "calib_ids.json").read_text())
    x = plain["model.embed_tokens.weight"].data.astype(np.float64)[np.concatenate(ids[:8])]
    config = json.loads((source / "config.json").read_text())
    normed = x / np.sqrt(np.square(x).mean(1, keepdims=True) + config["rms_norm_eps"])
    got = statistics["model.layers.0.input_layernorm.weight.rotated_mean"].data
    np.testing.assert_allclose(got, normed.mean(0), atol=1e-5)

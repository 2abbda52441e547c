"""Rotated models compute what they computed before (specification: spec/rotation.md): against the logits
that transformers computed of the originals."""
import json
import shutil

import numpy as np
import pytest
import tensor_file
from conftest import run_tare
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

"""Model families and rope types from outside. (Logits: tests/oracle/test_transformers.py.)"""
import json

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import run_tare

MISTRAL = dict(model_type="mistral", architectures=["MistralForCausalLM"])
FLAGS = ["--anti-method", "m3", "--fa-quant"]
LONG = [p * 12 for p in tiny.PROMPTS[:4]]  # 120 to 420 tokens


@pytest.fixture
def calib(tmp_path):
    return tiny.write_prompts(tmp_path / "prompts.jsonl")


def quantize(model, calib, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--calib", calib, *FLAGS, *flags)
    assert done.returncode == 0, done.stderr
    return tensor_file.read_folder(out)


def assert_equal(a, b):
    assert set(a) == set(b)
    for name in a:
        assert np.array_equal(a[name].data, b[name].data), name


@pytest.mark.parametrize("rope_scaling", [None, {"type": "linear", "factor": 1.0},
                                          {"type": "yarn", "factor": 1.0}], ids=str)
def test_mistral_without_window_is_a_llama(rope_scaling, calib, tmp_path):
    """The equations are the same then, and a factor of 1 stretches nothing."""
    llama = tiny.write_checkpoint(tmp_path / "llama")
    # JSON null, which write_config leaves out otherwise
    mistral = tiny.write_checkpoint(tmp_path / "mistral", **MISTRAL, rope_scaling=rope_scaling)
    config = json.loads((mistral / "config.json").read_text())
    (mistral / "config.json").write_text(json.dumps({**config, "sliding_window": None}))
    got = quantize(mistral, calib, tmp_path / "a")
    assert_equal(got, quantize(llama, calib, tmp_path / "b"))
    for layer in range(2):
        for kind in "qkv":
            assert f"model.layers.{layer}.self_attn.fa_{kind}.scale" in got
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model_type"] == "mistral"


def test_window_shows(calib, tmp_path):
    """The first layer's attention and all behind it see fewer keys; its input does not change."""
    wide = tiny.write_checkpoint(tmp_path / "wide", **MISTRAL)  # 4096
    narrow = tiny.write_checkpoint(tmp_path / "narrow", **MISTRAL, sliding_window=3)
    a, b = (quantize(model, calib, tmp_path / f"{model.name}.out") for model in (wide, narrow))
    same = {name for name in a if np.array_equal(a[name].data, b[name].data)}
    scale = "model.layers.{}.self_attn.{}_proj.input_scale"
    assert scale.format(0, "q") in same
    assert not {scale.format(0, "o"), scale.format(1, "q")} & same


@pytest.mark.parametrize("rope,limit", [
    (None, 128), ({"type": "linear", "factor": 2}, 256), ({"type": "dynamic", "factor": 2}, 256),
    ({"type": "yarn", "factor": 2}, 256)], ids=str)
def test_stretched_maximum(rope, limit, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model", **MISTRAL, rope_scaling=rope)
    calib = tmp_path / "ids.json"
    calib.write_text(json.dumps([[7] * limit]))
    quantize(model, calib, tmp_path / "out")
    calib.write_text(json.dumps([[7], [7] * (limit + 1)]))
    done = run_tare("quantize", model, "--out", tmp_path / "refused", "--calib", calib)
    assert done.returncode == 1 and f"row 2: {limit + 1} tokens exceed" in done.stderr


@pytest.mark.parametrize("changes", [
    MISTRAL | {"sliding_window": 20, "max_position_embeddings": 512},
    {"rope_scaling": {"type": "dynamic", "factor": 8}, "max_position_embeddings": 60},
    {"rope_scaling": {"type": "yarn", "factor": 8}, "max_position_embeddings": 60}], ids=str)
def test_batches_and_threads_change_nothing(changes, tmp_path):
    """Prompts on both sides of the length where dynamic rope begins, together and alone."""
    model = tiny.write_checkpoint(tmp_path / "model", **changes)
    calib = tiny.write_prompts(tmp_path / "prompts.jsonl", LONG + tiny.PROMPTS)
    a = quantize(model, calib, tmp_path / "a", "--threads", "1", "--batch-rows", "1",
                 "--max-length", "400")
    b = quantize(model, calib, tmp_path / "b", "--threads", "3", "--max-length", "400")
    assert_equal(a, b)

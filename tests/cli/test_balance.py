"""Balance (`--anti-method balance`, `--fa-balance`) from outside: what it goes with, that every way to run it
gives the same bytes, and the factors by hand (specification: spec/rotation.md 4, 5). That models compute the
same: tests/golden/test_rotated_logits.py."""
import json
import re
import shutil

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import GOLDEN, output_files, run_tare
from test_experts import kill_at

BOTH = ["--anti-method", "balance", "--fa-quant", "--fa-balance"]
SCHEMES = {"dynamic": ["--scheme", "w8a8_dynamic", *BOTH], "static": [*BOTH, "--act-method", "4"],
           "rotated": ["--rotate", "--mix", "*.mlp.*=w8a8_dynamic", *BOTH],
           "levels": ["--act-method", "3", "--disable-level", "L2", *BOTH],
           "heads": ["--fa-quant", "--fa-balance", "--fa-amp", "1"]}


def model_of(name):
    return GOLDEN / name / "model"


def quantize(model, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--dtype", "bfloat16", "--calib",
                    GOLDEN / "calib_ids.json", *flags)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_the_same_bytes(name, scheme, tmp_path):
    """Threads, the smallest budget, an earlier run's statistics; and verify knows what was moved."""
    flags = SCHEMES[scheme]
    quantize(model_of(name), tmp_path / "one", *flags, "--threads", 1)
    wanted = output_files(tmp_path / "one")
    quantize(model_of(name), tmp_path / "two", *flags, "--threads", 2)
    assert output_files(tmp_path / "two") == wanted
    refused = run_tare("quantize", model_of(name), "--out", tmp_path / "refused", "--dtype", "bfloat16", "--calib",
                       GOLDEN / "calib_ids.json", *flags, "--max-memory", "cpu=9MiB")
    smallest, = re.findall(r"the smallest budget that works here is (cpu=\d+MiB)", refused.stderr)
    quantize(model_of(name), tmp_path / "small", *flags, "--max-memory", smallest)
    assert output_files(tmp_path / "small") == wanted
    done = run_tare("verify", tmp_path / "one", "--base", model_of(name), "--json")
    found = json.loads(done.stdout)
    assert found["failures"] == 0 and {f["rule"] for f in found["findings"]} <= {25}, done.stdout
    done = run_tare("retype", tmp_path / "one", "--base", model_of(name), "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert output_files(tmp_path / "again", record=False) == output_files(tmp_path / "one", record=False)


def test_verify_sees_other_rows(tmp_path):
    """Half a scale is the limit for a balanced weight too: its factors are known."""
    quantize(model_of("qwen2"), tmp_path / "out", *SCHEMES["dynamic"])
    weights, = (tmp_path / "out").glob("quant_model_weight*.safetensors")
    tensors = tensor_file.read(weights)
    name = "model.layers.1.self_attn.k_proj.weight"
    changed = tensors[name].data.copy()
    changed[3, 5] += 2 if changed[3, 5] < 0 else -2
    tensors[name] = tensor_file.Tensor("I8", changed)
    tensor_file.write(weights, tensors)
    done = run_tare("verify", tmp_path / "out", "--base", model_of("qwen2"), "--json")
    found = [(f["rule"], f["tensor"]) for f in json.loads(done.stdout)["findings"] if f["rule"] != 25]
    assert done.returncode == 1 and found == [(15, name)]


def test_retype_with_another_scheme(tmp_path):
    """A down_proj that becomes static would not be balanced, and its range is of one that is."""
    quantize(model_of("qwen2"), tmp_path / "out", "--anti-method", "balance", "--mix", "*.mlp.*=w8a8_dynamic")
    done = run_tare("retype", tmp_path / "out", "--base", model_of("qwen2"), "--out", tmp_path / "b",
                    "--mix", "*=w8a8")
    assert done.returncode == 2 and "balance: model.layers.0.mlp.up_proj was balanced" in done.stderr


def test_retype_of_attention(tmp_path):
    """Without FA the balance is of no more use, and keys are what they were; a cache's scales would be of others. An
    attention that goes without FA alone stands among balanced ones."""
    model, base = model_of("qwen2"), ["--base", model_of("qwen2")]
    quantize(model, tmp_path / "balanced", "--fa-quant", "--fa-balance")
    quantize(model, tmp_path / "fa", "--fa-quant")
    for name in ("balanced", "fa"):
        done = run_tare("retype", tmp_path / name, *base, "--out", tmp_path / f"{name} without", "--no-fa-quant")
        assert done.returncode == 0, done.stderr
        done = run_tare("verify", tmp_path / f"{name} without", *base)
        assert done.returncode == 0, done.stdout
    for flags, message in ((["--no-fa-quant", "--kv-cache", "c8"], "that were balanced"),
                           (["--disable-names", "model.layers.0.self_attn"], "layers.0.self_attn was balanced")):
        done = run_tare("retype", tmp_path / "balanced", *base, "--out", tmp_path / "b", *flags)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    recipe = tmp_path / "balance.yaml"
    recipe.write_text("fa_quant: {balance: true}\n")
    done = run_tare("retype", tmp_path / "fa", *base, "--out", tmp_path / "b", "--recipe", recipe)
    assert done.returncode == 2 and "not balanced" in done.stderr, done.stderr


@pytest.mark.parametrize("damage", ["zero", "garbage", "record"])
def test_verify_with_damaged_statistics(damage, tmp_path):
    """A finding, whatever else there is to say; a factor of 0 is none."""
    quantize(model_of("qwen2"), tmp_path / "out", *SCHEMES["dynamic"])
    path = tmp_path / "out" / "tare" / "tare_stats.safetensors"
    if damage == "zero":
        tensors = tensor_file.read(path)
        for name in tensors:
            if name.endswith(".smooth_rows"):
                tensors[name] = tensor_file.Tensor("F32", 0 * tensors[name].data)
        tensor_file.write(path, tensors)
    elif damage == "garbage":
        path.write_bytes(b"garbage")
    else:
        (tmp_path / "out" / "tare_run.json").write_text("{")
    done = run_tare("verify", tmp_path / "out", "--base", model_of("qwen2"), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["layout"] == "ascendv1"
    rules = {(f["rule"], f["tensor"]) for f in found["findings"]}
    expected = {"zero": (15, "model.layers.0.mlp.up_proj.weight"), "garbage": (3, "tare/tare_stats.safetensors"),
                "record": (3, "tare_run.json")}
    assert expected[damage] in rules


def test_nothing_to_balance_is_said(tmp_path):
    done = quantize(model_of("qwen2"), tmp_path / "out", "--anti-method", "balance")
    assert "balance moves nothing" in done.stderr


def test_resume(tmp_path):
    model, calib = model_of("qwen2"), ["--calib", GOLDEN / "calib_ids.json"]
    flags = [*SCHEMES["rotated"], "--checkpoint-every", 1]
    quantize(model, tmp_path / "whole", *flags)
    lines = len(quantize(model, tmp_path / "lines", *flags, "--verbose").stderr.splitlines())
    out = tmp_path / "out"
    for _ in range(20):
        shutil.rmtree(out, ignore_errors=True)
        if kill_at(model, out, lines // 2, "--dtype", "bfloat16", *calib, *flags):
            break
    quantize(model, out, *flags, "--resume")
    assert output_files(out) == output_files(tmp_path / "whole")


@pytest.mark.parametrize("flags, message", [
    (["--fa-balance"], "fa_quant.balance is given, but fa_quant is not"),
    (["--fa-quant", "--fa-balance", "--anti-method", "m4", "--save", "safe_tensor"],
     "fa_quant.balance does not go with anti_outlier.anti_method m4"),
    (["--fa-quant", "--fa-balance", "--compat", "msmodelslim"], "fa_quant.balance: msModelSlim has no such thing"),
    (["--anti-method", "balance", "--compat", "msmodelslim"], "msModelSlim has no balance"),
    (["--anti-method", "balanced"], "m1, m2, m3, m4, m5, m6, balance"),
    (["--anti-method", "balance", "--a-bit", "16"], "needs the calibration"),
    (["--recipe", "best-static", "--no-fa-quant", "--anti-method", "balanced"], "m6, balance"),
])
def test_refused(flags, message, tmp_path):
    done = run_tare("quantize", model_of("qwen2"), "--out", tmp_path / "out", "--calib", GOLDEN / "calib_ids.json",
                    *flags)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags, message", [
    (["--fa-quant", "--fa-balance"], "fa_quant.balance: deepseek_v3 models"),
    (["--anti-method", "balance"], "anti_method balance: deepseek_v3 models")])
def test_refused_by_the_model(flags, message, tmp_path):
    """Latent attention makes keys of its heads and of one that all share; experts have no such pair."""
    own = GOLDEN / "deepseek_v3" / "calib_ids.json"
    done = run_tare("quantize", model_of("deepseek_v3"), "--out", tmp_path / "out", "--calib", own, *flags)
    assert done.returncode == 2 and message in done.stderr


def test_without_samples(tmp_path):
    done = run_tare("quantize", model_of("qwen2"), "--out", tmp_path / "out", "--scheme", "w8a8_dynamic",
                    "--anti-method", "balance")
    assert done.returncode == 2 and "anti_outlier.anti_method needs" in done.stderr, done.stderr


IDS = [[7, 250, 31, 99, 4, 4, 180], [12, 201, 66], [255, 3, 140, 141, 142, 9, 77, 78, 200, 18, 1]]


class FirstLayer:
    """What the first layer's linears read, by numpy; o_proj is 0, so that the stream is the embedding."""

    def __init__(self, folder):
        tensors = {name: ("F32", x) for name, (_, x) in tiny.make_tensors().items()}
        tensors["model.layers.0.self_attn.o_proj.weight"][1][:] = 0
        self.model = tiny.write_checkpoint(folder / "model", tensors, torch_dtype="float32")
        self.calib = folder / "ids.json"
        self.calib.write_text(json.dumps(IDS))
        self.weights = {name: x.astype(np.float64) for name, (_, x) in tensors.items()}
        self.stream = self.weights["model.embed_tokens.weight"][np.concatenate(IDS)]

    def weight(self, name):
        return self.weights[f"model.layers.0.{name}.weight"]

    def normed(self, name):
        h = self.stream
        return h / np.sqrt(np.square(h).mean(1, keepdims=True) + tiny.CONFIG["rms_norm_eps"]) * self.weight(name)

    def run(self, out, *flags):
        done = run_tare("quantize", self.model, "--out", out, "--scheme", "w8a8_dynamic", "--calib", self.calib,
                        *flags)
        assert done.returncode == 0, done.stderr
        return (tensor_file.read(out / "tare" / "tare_stats.safetensors"), tensor_file.read_folder(out))


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_up_and_down_by_hand(alpha, tmp_path):
    """t = (M / geometric mean of M)^a, M the largest |z| / |h| of a channel: rows of up / t, columns of
    down * t."""
    layer = FirstLayer(tmp_path)
    stats, output = layer.run(tmp_path / "out", "--anti-method", "balance", *(["--alpha", alpha] if alpha else []))
    n = layer.normed("post_attention_layernorm")
    gate = n @ layer.weight("mlp.gate_proj").T
    z = gate / (1 + np.exp(-gate)) * (n @ layer.weight("mlp.up_proj").T)
    largest = (np.abs(z) / np.linalg.norm(layer.stream, axis=1, keepdims=True)).max(0)
    t = (largest / np.exp(np.log(largest).mean())) ** (alpha or 0.5)
    np.testing.assert_allclose(stats["model.layers.0.mlp.up_proj.smooth_rows"].data, t, rtol=1e-4)
    np.testing.assert_allclose(stats["model.layers.0.mlp.down_proj.smooth_columns"].data, t, rtol=1e-4)
    for name, balanced in (("up", layer.weight("mlp.up_proj") / t[:, None]),
                           ("down", layer.weight("mlp.down_proj") * t)):
        scale = output[f"model.layers.0.mlp.{name}_proj.weight_scale"].data[:, 0]
        np.testing.assert_allclose(scale, np.abs(balanced).max(1) / 127, rtol=1e-4)


def test_queries_and_keys_by_hand(tmp_path):
    """t = sqrt(max |k| / max |q|) of each pair (j, j + D/2) of a head of keys and its two heads of queries."""
    layer = FirstLayer(tmp_path)
    stats, _ = layer.run(tmp_path / "out", "--fa-quant", "--fa-balance")
    n, positions = layer.normed("input_layernorm"), np.concatenate([np.arange(len(ids)) for ids in IDS])
    angles = positions[:, None] / 10000.0 ** (np.arange(4) / 4)
    turns, largest = np.exp(1j * angles), {}
    for name, heads in (("q", 4), ("k", 2)):
        x = (n @ layer.weight(f"self_attn.{name}_proj").T).reshape(len(n), heads, 2, 4)
        turned = (x[:, :, 0] + 1j * x[:, :, 1]) * turns[:, None]
        pairs = np.maximum(np.abs(turned.real), np.abs(turned.imag)).max(0)
        largest[name] = pairs.reshape(2, heads // 2, 4).max(1)
    t = np.sqrt(largest["k"] / largest["q"])
    rows = {name: stats[f"model.layers.0.self_attn.{name}_proj.smooth_rows"].data.reshape(2, -1, 2, 4)
            for name in "qk"}
    for half in range(2):
        np.testing.assert_allclose(rows["k"][:, 0, half], t, rtol=1e-4)
        for head in range(2):
            np.testing.assert_allclose(rows["q"][:, head, half], 1 / t, rtol=1e-4)

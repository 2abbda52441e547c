"""Experts with 4-bit weights (W4A8_DYNAMIC) from outside: where they are possible, that every way to
make them gives the same, and what `tare verify` sees. (Numbers: tests/golden/test_int4_weights.py.)"""
import json
import shutil

import numpy as np
import pytest
import tensor_file
from conftest import GOLDEN, output_files, run_tare

MIX = ["--mix", "*.mlp.experts.*=w4a8_dynamic"]
WEIGHTS_ALONE = ["--scheme", "w8a8_dynamic", "--dtype", "bfloat16"]
EXPERT = "model.layers.1.mlp.experts.2."


def model_of(name):
    return GOLDEN / name / "model"


def run(name, out, *flags):
    return run_tare("quantize", model_of(name), "--out", out, *flags)


def quantize(name, out, *flags):
    done = run(name, out, *flags)
    assert done.returncode == 0, done.stderr
    return done


def calibrated(name):
    return ["--calib", GOLDEN / name / "calib_ids.json", "--dtype", "bfloat16"]


def verify(folder, *flags):
    done = run_tare("verify", folder, "--json", *flags)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("int4") / "out"
    quantize("deepseek_v3", out, *MIX, *WEIGHTS_ALONE)
    return out


def test_files(made):
    """One scale a row; [N,16] sums where columns are shared out; what is no expert keeps its type."""
    tensors = tensor_file.read_folder(made)
    types = json.loads((made / "quant_model_description.json").read_text())
    source = tensor_file.read_folder(model_of("deepseek_v3"))
    assert types["model_quant_type"] == "W8A8_DYNAMIC" and types["group_size"] == 0
    for part, slices in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 16)):
        n, k = source[f"{EXPERT}{part}.weight"].data.shape
        wanted = {"weight": ("I8", (n // 2, k)), "weight_scale": ("F32", (n, 1)),
                  "weight_offset": ("F32", (n, 1)), "scale_bias": ("F32", (n, slices))}
        found = {name.rpartition(".")[2]: (t.tag, t.data.shape) for name, t in tensors.items()
                 if name.startswith(EXPERT + part)}
        assert found == wanted
        assert {types[f"{EXPERT}{part}.{name}"] for name in wanted} == {"W4A8_DYNAMIC"}
    assert types["model.layers.1.mlp.shared_experts.up_proj.weight"] == "W8A8_DYNAMIC"
    assert types["model.layers.0.mlp.up_proj.weight"] == "W8A8_DYNAMIC"
    assert types["model.layers.1.mlp.gate.weight"] == "FLOAT"


def test_what_mindie_reads(made, tmp_path):
    """DeepSeek alone has the keys; with FA3 attention goes by another."""
    def keys(out):
        config = json.loads((out / "config.json").read_text())
        return {key: text for key, text in config.items() if key.endswith("quantize")}
    wanted = {"quantize": "w8a8_dynamic", "moe_quantize": "w4a8_dynamic",
              "mla_quantize": "w8a8_dynamic"}
    assert keys(made) == wanted
    quantize("deepseek_v3", tmp_path / "fa", *MIX, *calibrated("deepseek_v3"), "--fa-quant")
    assert keys(tmp_path / "fa") == wanted | {"mla_quantize": "w8a8"}
    quantize("qwen3_moe", tmp_path / "qwen", *MIX, *WEIGHTS_ALONE)
    assert keys(tmp_path / "qwen") == {}


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe"])
def test_samples_change_no_expert(name, tmp_path):
    """Their weights tell all; and threads and budgets change nothing."""
    quantize(name, tmp_path / "alone", *MIX, *WEIGHTS_ALONE)
    flags = [*MIX, *calibrated(name)]
    quantize(name, tmp_path / "a", *flags, "--threads", 1)
    quantize(name, tmp_path / "b", *flags, "--threads", 2)
    assert output_files(tmp_path / "a") == output_files(tmp_path / "b")
    alone, a = (tensor_file.read_folder(tmp_path / folder) for folder in ("alone", "a"))
    experts = [name for name in a if ".mlp.experts." in name]
    assert len(experts) >= 4 * 48
    for expert in experts:
        np.testing.assert_array_equal(a[expert].data, alone[expert].data, expert)


def test_retype(tmp_path):
    quantize("qwen3_moe", tmp_path / "first", *calibrated("qwen3_moe"))
    done = run_tare("retype", tmp_path / "first", "--base", model_of("qwen3_moe"), "--out",
                    tmp_path / "second", *MIX)
    assert done.returncode == 0, done.stderr
    tensors = tensor_file.read_folder(tmp_path / "second")
    quantize("qwen3_moe", tmp_path / "alone", *MIX, *WEIGHTS_ALONE)
    alone = tensor_file.read_folder(tmp_path / "alone")
    for name in (name for name in alone if ".mlp.experts." in name):
        np.testing.assert_array_equal(tensors[name].data, alone[name].data, name)


# ---- verify

def changed(made, folder, change):
    shutil.copytree(made, folder)
    path, = folder.glob("*.safetensors")
    tensors = tensor_file.read(path)
    change({name: t.data for name, t in tensors.items()}, tensors)
    tensor_file.write(path, tensors)
    return folder


def test_verify(made):
    code, report = verify(made, "--base", model_of("deepseek_v3"), "--target", "vllm-ascend")
    assert code == 0 and report["failures"] == 0
    assert {layer["verdict"] for layer in report["layers"]} == {"loads"}
    code, report = verify(made, "--target", "sglang")
    assert code == 0 and {layer["verdict"] for layer in report["layers"]} == {"loads"}


def set_element(name, index, value):
    def change(data, tensors):
        x = data[name].copy()
        x[index] = value
        tensors[name] = tensor_file.Tensor(tensors[name].tag, x)
    return change


def drop(name):
    return lambda data, tensors: tensors.pop(name)


def reshape(name, *shape):
    def change(data, tensors):
        tensors[name] = tensor_file.Tensor(tensors[name].tag, data[name].reshape(shape))
    return change


@pytest.mark.parametrize("change,rule,word", [
    (set_element(EXPERT + "gate_proj.weight", (3, 5), 0x77), 11, "gate_proj.scale_bias"),
    (set_element(EXPERT + "down_proj.weight", (0, 0), -128), 11, "down_proj.scale_bias"),
    (set_element(EXPERT + "down_proj.scale_bias", (2, 7), 1e3), 11, "down_proj.scale_bias"),
    (set_element(EXPERT + "up_proj.weight_scale", (1, 0), 0), 8, "up_proj.weight_scale"),
    (set_element(EXPERT + "up_proj.weight_offset", (1, 0), 1), 9, "up_proj.weight_offset"),
    (drop(EXPERT + "up_proj.scale_bias"), 6, "up_proj.scale_bias"),
    (reshape(EXPERT + "down_proj.scale_bias", 16, -1), 6, "down_proj.scale_bias"),
], ids=["nibble", "slice", "scale_bias", "scale", "offset", "missing", "shape"])
def test_verify_finds(change, rule, word, made, tmp_path):
    code, report = verify(changed(made, tmp_path / "out", change))
    assert code == 1
    assert [f for f in report["findings"] if f["rule"] == rule and word in f["tensor"]]


def test_verify_compares_with_the_base(made, tmp_path):
    """Another scale, with a scale_bias that fits."""
    def change(data, tensors):
        for part in ("weight_scale", "scale_bias"):
            name = f"{EXPERT}gate_proj.{part}"
            tensors[name] = tensor_file.Tensor("F32", data[name] * np.float32(1.5))
    code, report = verify(changed(made, tmp_path / "out", change), "--base", model_of("deepseek_v3"))
    assert code == 1
    assert {f["rule"] for f in report["findings"] if f["tensor"].startswith(EXPERT)} == {15}


def test_verify_looks_at_shapes(made, tmp_path):
    """24 columns, of which 16 slices have no equal part; 2 rows, which are no words of 32 bits."""
    def change(data, tensors):
        for part, n, k, slices in (("down_proj", 8, 24, 16), ("up_proj", 2, 64, 1)):
            for name, shape in (("weight", (n // 2, k)), ("weight_scale", (n, 1)),
                                ("weight_offset", (n, 1)), ("scale_bias", (n, slices))):
                full = f"{EXPERT}{part}.{name}"
                tensors[full] = tensor_file.Tensor(tensors[full].tag, np.zeros(shape, data[full].dtype))
    code, report = verify(changed(made, tmp_path / "out", change))
    found = {f["tensor"]: f["found"] for f in report["findings"] if f["rule"] == 6}
    assert code == 1 and found == {EXPERT + "down_proj": "[8,24]", EXPERT + "up_proj": "[2,64]"}


def test_verify_leaves_groups_alone(tmp_path):
    """msModelSlim's form with groups, in safe_tensor not packed: a warning that it is not checked."""
    quantize("deepseek_v3", tmp_path / "out", *WEIGHTS_ALONE, "--save", "safe_tensor")
    weights, = (tmp_path / "out").glob("*.safetensors")
    description, = (tmp_path / "out").glob("quant_model_description*.json")
    tensors, types = tensor_file.read(weights), json.loads(description.read_text())
    experts = [name for name in types if ".mlp.experts." in name]
    types |= dict.fromkeys(experts, "W4A8_DYNAMIC")
    for name in [name for name in experts if name.endswith(".weight_scale")]:
        tensors[name + "_second"] = tensors[name]
        types[name + "_second"] = "W4A8_DYNAMIC"
    tensor_file.write(weights, tensors)
    description.write_text(json.dumps(types))
    code, report = verify(tmp_path / "out", "--base", model_of("deepseek_v3"))
    warned = {f["tensor"] for f in report["findings"] if f["rule"] == 6}
    assert code == 0 and warned == {name.removesuffix(".weight") for name in experts
                                    if name.endswith(".weight")}


# ---- refusals

@pytest.mark.parametrize("flags,words", [
    (["--mix", "*.mlp.*=w4a8_dynamic"], ['"*.mlp.*" says w4a8_dynamic of', "no routed expert"]),
    (["--mix", "*.o_proj=w4a8_dynamic"], ["o_proj, which is no routed expert"]),
    (["--mix", "*experts*=w4a8_dynamic"], ["shared_experts"]),
    (["--scheme", "w4a8_dynamic"], ['quant.scheme: "w4a8_dynamic" is not known']),
    ([*MIX, "--mm-tensor"], ["quant.mm_tensor: w8a8_dynamic needs a scale for each row"]),
    ([*MIX, "--save", "safe_tensor"], ["safe_tensor has no w4a8_dynamic", "save as ascendv1"]),
    ([*MIX, "--save", "ascendv1,numpy"], ["numpy has no w4a8_dynamic"]),
    ([*MIX, "--save", "compressed-tensors"], ["compressed-tensors has no w4a8_dynamic"]),
    ([*MIX, "--weight-method", "hqq"], ['"hqq" is not known; possible: ssz, minmax, gptq']),
    (["--mix", "*.mlp.experts.*.up_proj=w4a8_dynamic"], ["engines fuse"]),
    (["--mix", "*.mlp.experts.1.*=w4a8_dynamic"], ["all experts of a layer to be of one type"]),
], ids=lambda x: " ".join(x) if isinstance(x, list) and x[0].startswith("--") else "")
def test_refused(flags, words, tmp_path):
    if "--scheme" not in flags:
        flags = [*flags, "--scheme", "w8a8_dynamic"]
    done = run("deepseek_v3", tmp_path / "out", *flags)
    assert done.returncode == 2, done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "out").exists()


def test_shapes_that_engines_cannot_view(tmp_path):
    """down_proj of this model has 24 columns, which 16 does not divide."""
    done = run("deepseek_v3_fp8", tmp_path / "out", *MIX, "--scheme", "w8a8_dynamic")
    assert done.returncode == 2
    assert "down_proj [96,24] would be w4a8_dynamic" in done.stderr and "multiples of 16" in done.stderr

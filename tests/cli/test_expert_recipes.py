"""The shipped recipes of mixtures of experts, on tiny models with as many layers as the real ones."""
import json
import re

import pytest
import tensor_file
from conftest import GOLDEN, run_tare

LAYERS = 61
WITHOUT_FA = {  # the published lists (models.md 2)
    "deepseek-r1-w8a8-fa3": [0, 1, 2, 46, 47, 50, *range(54, 61)],
    "deepseek-v3.1-w8a8-fa3": [0, 1, 2, 50, 51, *range(53, 61)],
    "deepseek-v3-w8a8-fa3": [0, 1, 2, 46, 50, 51, *range(53, 58), 59, 60],
}


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    """61 layers: the first is the golden model's dense one, each other its first with experts."""
    folder = tmp_path_factory.mktemp("deepseek") / "model"
    folder.mkdir()
    source = tensor_file.read_folder(GOLDEN / "deepseek_v3/model")
    tensors = {name: t for name, t in source.items() if not name.startswith("model.layers.")}
    for layer in range(LAYERS):
        old, new = f"model.layers.{min(layer, 1)}.", f"model.layers.{layer}."
        tensors |= {name.replace(old, new): t for name, t in source.items() if name.startswith(old)}
    tensor_file.write(folder / "model.safetensors", tensors)
    config = json.loads((GOLDEN / "deepseek_v3/model/config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}))
    return folder


def quantize(recipe, model, golden, out, *flags):
    done = run_tare("quantize", model, "--recipe", recipe, "--calib",
                    GOLDEN / golden / "calib_ids.json", "--dtype", "float16", "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "quant_model_description.json").read_text())


def kinds(types):
    """{part of a layer: its types}: numbers of layers and experts left out, weights alone."""
    found = {}
    for name, kind in types.items():
        if name.endswith("proj.weight") or name.endswith(("gate.weight", "with_mqa.weight")):
            part = re.sub(r"\.\d+", "", name.removeprefix("model.layers").removesuffix(".weight"))
            found.setdefault(part, set()).add(kind)
    return found


ATTENTION = {f".self_attn.{name}": {"W8A8"}
             for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")}
DEEPSEEK = ATTENTION | {".self_attn.kv_b_proj": {"FLOAT"}, ".mlp.gate": {"FLOAT"}}
for part in ("gate_proj", "up_proj", "down_proj"):
    DEEPSEEK |= {f".mlp{among}.{part}": {"W8A8_DYNAMIC"} for among in ("", ".experts", ".shared_experts")}


@pytest.mark.parametrize("recipe", ["deepseek-v3-w8a8", "deepseek-v3-w4a8", *WITHOUT_FA])
def test_deepseek(recipe, deepseek, tmp_path):
    types = quantize(recipe, deepseek, "deepseek_v3", tmp_path / "out", "--target", "vllm-ascend")
    wanted = dict(DEEPSEEK)
    if recipe == "deepseek-v3-w4a8":
        wanted |= {f".mlp.experts.{part}": {"W4A8_DYNAMIC"} for part in ("gate_proj", "up_proj", "down_proj")}
    assert kinds(types) == wanted
    assert types["model_quant_type"] == "W8A8_DYNAMIC" and types["lm_head.weight"] == "FLOAT"
    scaled = {int(name.split(".")[2]) for name in types if ".fa_q." in name}
    without = WITHOUT_FA.get(recipe, range(LAYERS))
    assert scaled == set(range(LAYERS)) - set(without)
    assert types.get("fa_quant_type") == ("FAKQuant" if recipe in WITHOUT_FA else None)
    assert any(name.endswith("norm.bias") for name in types)  # m4 moves centres


def test_qwen3_moe(tmp_path):
    types = quantize("qwen3-moe-w8a8", GOLDEN / "qwen3_moe/model", "qwen3_moe", tmp_path / "out",
                     "--target", "vllm-ascend")
    found = kinds(types)
    assert found.pop(".mlp.gate") == {"FLOAT"}
    assert {part for part in found if "self_attn" in part and found[part] == {"W8A8"}} == {
        f".self_attn.{name}_proj" for name in "qkvo"}
    assert {kind for part in found if ".mlp." in part for kind in found[part]} == {"W8A8_DYNAMIC"}
    assert types["model_quant_type"] == "W8A8_DYNAMIC"

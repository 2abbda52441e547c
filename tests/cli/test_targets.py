"""`tare verify --target` and `tare quantize --target`: what engines load, version by version.

The verdicts that are expected here are written down by hand, from the engines' own sources (section 1
of the scheme specification), not read from the table that the command goes by."""
import json
import shutil

import numpy as np
import pytest
import tensor_file
import test_families
import tiny
from conftest import GOLDEN, SHARED, run_tare
from test_broken_outputs import (ATTENTION, DOWN, GATE, K, LAYER, Q, UP, V, Output, both, kv,
                                 output_maker, put, set_config, types)

A, S, N, C = "ascendv1", "safe_tensor", "numpy", "compressed-tensors"
LOADS, FLOATS, REFUSED, UNKNOWN = "loads", "runs unquantized", "is refused", "not known"
OUTPUTS = {  # name: (model, flags of tare quantize)
    "w8a8": ("llama", []),
    "dynamic": ("llama", ["--scheme", "w8a8_dynamic"]),
    "mix": ("llama", ["--scheme", "w8a8_mix"]),
    "w8a16": ("llama", ["--a-bit", 16]),
    "offsets": ("llama", ["--a-bit", 16, "--no-w-sym"]),
    "several": ("llama", ["--mix", "*.mlp.*=w8a8_dynamic"]),
    "fa": ("llama", ["--fa-quant"]),
    "fa-safe": ("llama", ["--fa-quant", "--save", S]),
    "c8": ("llama", ["--kv-cache", "c8"]),
    "c8-wide": ("wide", ["--kv-cache", "c8"]),
    "c8-safe": ("llama", ["--kv-cache", "c8", "--save", S]),
    "c8-qwen3": ("qwen3", ["--kv-cache", "c8"]),
    "safe": ("llama", ["--save", S]),
    "safe-several": ("llama", ["--save", S, "--mix", "*.mlp.*=w8a8_dynamic"]),
    "safe-mix": ("llama", ["--save", S, "--scheme", "w8a8_mix"]),
    "safe-w8a16": ("llama", ["--save", S, "--a-bit", 16]),
    "numpy": ("llama", ["--save", N]),
    "ct": ("llama", ["--save", C]),
    "ct-zero-points": ("llama", ["--save", C, "--no-act-sym"]),
    "ct-dynamic": ("llama", ["--save", C, "--scheme", "w8a8_dynamic"]),
    "ct-w8a16": ("llama", ["--save", C, "--a-bit", 16]),
    "ct-several": ("llama", ["--save", C, "--mix", "*.mlp.*=w8a8_dynamic"]),
    "shifted": ("qwen3", ["--anti-method", "m4"]),
    "all": ("llama", ["--save", f"{A},{S},{C}"]),
}


def make_model(folder, name):
    changes = dict(head_dim=32) if name in ("wide", "qwen3") else {}
    tensors = tiny.make_tensors({**tiny.CONFIG, **changes})
    if name == "qwen3":
        changes["model_type"] = "qwen3"
        for i in range(2):
            for head in "qk":
                tensors[f"model.layers.{i}.self_attn.{head}_norm.weight"] = ("BF16", np.ones(32))
    return tiny.write_checkpoint(folder, tensors, **changes)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target-models")
    return {name: make_model(folder / name, name) for name in ("llama", "wide", "qwen3")}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return tiny.write_prompts(tmp_path_factory.mktemp("target-prompts") / "prompts.jsonl")


@pytest.fixture(scope="module")
def outputs(models, prompts, tmp_path_factory):
    return output_maker(OUTPUTS, models, tmp_path_factory.mktemp("target-outputs"), prompts)


def judge(folder, target, *flags):
    """(exit status, {layer: (verdict, why)}, the report)"""
    done = run_tare("verify", folder, "--target", target, "--json", *flags)
    report = json.loads(done.stdout)
    layers = {x["name"]: (x["verdict"], x["why"]) for x in report["layers"]}
    assert len(layers) == len(report["layers"])
    return done.returncode, layers, report


# ---- Changing outputs

def retype(module, kind, **tensors):
    """All tensors of a linear get a type; what the type has beside them is put there."""
    def apply(o):
        for name in [n for n in o.types if n.startswith(module + ".") and o.types[n] != "FLOAT"]:
            o.types[name] = kind
        for part, (tag, data) in tensors.items():
            o.put(f"{module}.{part}", tag, data, kind)
    return apply


def drop(*names):
    def apply(o):
        for name in names:
            for key in [n for n in o.tensors if n == name or n.startswith(name + ".")]:
                o.drop(key)
    return apply


def name_by(o, kind):
    """A model of several types goes by another of them, in its files' names too."""
    o.types["model_quant_type"] = kind
    o.config["quantize"] = kind.lower()
    for attribute, name in (("weights", f"quant_model_weight_{kind.lower()}.safetensors"),
                            ("description", f"quant_model_description_{kind.lower()}.json")):
        setattr(o, attribute, getattr(o, attribute).rename(o.folder / name))


def experts(kind=None, model_type="qwen3_moe", block="mlp", names=("gate_proj", "up_proj", "down_proj"),
            change=None):
    """The MLP of layer 0 twice, as two experts."""
    def apply(o):
        for old, new in zip((GATE, UP, DOWN), names):
            for key in [n for n in o.tensors if n.startswith(old + ".")]:
                for e in range(2):
                    name = f"{LAYER}{block}.experts.{e}.{new}{key[len(old):]}"
                    o.put(name, o.tensors[key].tag, o.tensors[key].data, kind or o.types[key])
                o.drop(key)
        o.config["model_type"] = model_type
        if change:
            change(o)
    return apply


EXPERT = LAYER + "mlp.experts.0.gate_proj"
OTHER_EXPERT = LAYER + "mlp.experts.1.down_proj"
STAGED = dict(weight_scale_second=("F32", np.ones((72, 2))))
KV_LORA = both(set_config("kv_lora_rank", value=512), set_config("model_type", value="deepseek_v3"))
ONES = np.ones(32)

# (target, output, what is done to it, a layer that is refused, a word of why)
CORPUS = [
    # ---- vLLM-Ascend
    ("vllm-ascend", "safe", None, Q, "quant_model_description.json"),
    ("vllm-ascend", "numpy", None, Q, "quant_model_description.json"),
    ("vllm-ascend", "ct-zero-points", None, DOWN, "symmetric"),
    ("vllm-ascend", "ct-w8a16", None, DOWN, "no scheme"),
    ("vllm-ascend", "fa", None, ATTENTION, "latent attention"),
    ("vllm-ascend", "c8", None, ATTENTION, "32"),
    ("vllm-ascend", "c8-wide", kv(offset=lambda x: np.ones_like(x)), ATTENTION, "offset"),
    ("vllm-ascend", "c8-wide", set_config("kv_lora_rank", value=512), ATTENTION, "latent"),
    ("vllm-ascend", "offsets", None, Q, "weight_offset"),
    ("vllm-ascend", "w8a8", retype(K, "W8A8_DYNAMIC"), Q, "different types"),
    ("vllm-ascend", "w8a8", retype(UP, "FLOAT"), GATE, "different types"),
    ("vllm-ascend", "w8a8", drop(V), K, "KeyError"),
    ("vllm-ascend", "dynamic", put(Q + ".bias", "BF16", ONES), Q, "bias"),
    ("vllm-ascend", "mix", put(DOWN + ".bias", "BF16", ONES), DOWN, "bias"),
    ("vllm-ascend", "mix", drop(DOWN + ".weight_scale"), DOWN, "weight_scale"),
    ("vllm-ascend", "w8a8", set_config("torch_dtype", value="float16"), DOWN, "deq_scale"),
    ("vllm-ascend", "mix", set_config("torch_dtype", value="float16"), DOWN, "deq_scale"),
    ("vllm-ascend", "w8a8", set_config("quantization_config", value={"a": 1}), Q, "ignore"),
    ("vllm-ascend", "w8a8", put(GATE + "_too.weight", "BF16", np.ones((4, 32))), GATE, "FLOAT"),
    ("vllm-ascend", "w8a8", retype(DOWN, "W4A16"), DOWN, "experts alone"),
    ("vllm-ascend", "w8a8", retype(DOWN, "NF4"), DOWN, "NotImplementedError"),
    ("vllm-ascend", "w8a8", retype(DOWN, "W8A8S"), DOWN, "NotImplementedError"),
    ("vllm-ascend", "w8a8", retype(DOWN, "W4A8_DYNAMIC"), DOWN, "removed"),
    ("vllm-ascend", "dynamic", retype(DOWN, "W4A8_DYNAMIC", **STAGED), DOWN, "removed"),
    ("vllm-ascend@0.26", "w8a8", retype(DOWN, "W4A8_DYNAMIC"), DOWN, "groups"),
    ("vllm-ascend", "w8a16", put(DOWN + ".weight_scale", "F32", np.ones((32, 2)), "W8A16"), DOWN,
     "one scale a row"),
    ("vllm-ascend", "w8a8", experts(), EXPERT, "no scheme for experts"),
    ("vllm-ascend", "w8a16", experts(), EXPERT, "no scheme for experts"),
    ("vllm-ascend", "mix", experts(), EXPERT, "removed"),
    ("vllm-ascend", "dynamic", experts("W4A8_DYNAMIC", change=types(group_size=128)), EXPERT,
     "group_size"),
    ("vllm-ascend", "dynamic", experts("W4A16"), EXPERT, "compressed-tensors"),
    ("vllm-ascend", "dynamic", experts(change=retype(OTHER_EXPERT, "W4A8_DYNAMIC")), EXPERT,
     "expert 0"),
    ("vllm-ascend", "dynamic", experts(model_type="mixtral", block="block_sparse_moe",
                                       names=("w1", "w3", "w2")),
     LAYER + "block_sparse_moe.experts.1.w2", "mixtral"),
    ("vllm-ascend", "fa", both(KV_LORA, types(fa_quant_type="FAQuant")), ATTENTION, "FAKQuant"),
    ("vllm-ascend@0.23", "c8-wide", None, ATTENTION, "Qwen3"),
    ("vllm-ascend@0.24.0rc1", "c8-wide", None, ATTENTION, "Qwen3"),
    # ---- SGLang
    ("sglang", "safe", None, Q, "quant_model_description.json"),
    ("sglang", "numpy", None, Q, "quant_model_description.json"),
    ("sglang", "w8a16", None, DOWN, "does not know"),
    ("sglang", "mix", None, DOWN, "does not know"),
    ("sglang", "w8a8", retype(DOWN, "W4A16"), DOWN, "does not know"),
    ("sglang", "w8a8", retype(DOWN, "W4A8_DYNAMIC"), DOWN, "does not know"),
    ("sglang", "w8a8", retype(DOWN, "NF4"), DOWN, "does not know"),
    ("sglang", "c8-wide", None, ATTENTION, "kv_cache_scale"),
    ("sglang", "ct", None, DOWN, "static"),
    ("sglang", "w8a8", retype(K, "W8A8_DYNAMIC"), Q, "different types"),
    ("sglang", "w8a8", drop(V), K, "not there"),
    ("sglang", "dynamic", put(Q + ".bias", "BF16", ONES), Q, "bias"),
    ("sglang", "w8a8", set_config("torch_dtype", value="float16"), DOWN, "deq_scale"),
    ("sglang", "w8a8", experts(), EXPERT, "no scheme for experts"),
    ("sglang", "dynamic", experts("FLOAT"), EXPERT, "float ones included"),
    ("sglang", "dynamic", experts("W4A8_DYNAMIC", change=types(group_size=128)), EXPERT, "one scale"),
    ("sglang", "dynamic", experts(change=retype(OTHER_EXPERT, "W4A8_DYNAMIC")), EXPERT, "expert 0"),
    # ---- MindIE
    ("mindie", "w8a8", None, Q, "quantize"),
    ("mindie", "ct", None, Q, "quantize"),
    ("mindie", "numpy", None, Q, "quantize"),
    ("mindie", "safe", set_config("quantize", drop=True), Q, "quantize"),
    ("mindie", "safe-several", lambda o: name_by(o, "W8A8"), UP, "model_quant_type"),
    ("mindie", "safe", set_config("torch_dtype", value="float16"), Q, "deq_scale"),
    ("mindie", "fa-safe", KV_LORA, ATTENTION, "float16"),
    # ---- vLLM
    ("vllm", "w8a8", None, Q, "quant_model_description.json"),
    ("vllm", "safe", None, Q, "quant_model_description.json"),
    ("vllm", "numpy", None, Q, "quant_model_description.json"),
    ("vllm", "c8-wide", None, ATTENTION, "quant_model_description.json"),
    ("vllm", "ct", put(Q + ".bias", "BF16", ONES), Q, "bias"),
    ("vllm", "ct", experts(), EXPERT, "each token"),
]


def case_id(case):
    return "-".join(str(x) for x in (case[0], case[1], case[3].split(".")[-1], case[4]))


@pytest.mark.parametrize("case", CORPUS, ids=case_id)
def test_refused(case, outputs, tmp_path):
    target, name, action, layer, word = case
    folder = outputs(name)
    if action:
        folder = shutil.copytree(folder, tmp_path / "out")
        o = Output(folder)
        if not o.description:  # no types to keep
            o.types = dict.fromkeys(o.tensors, "W8A8")
        action(o)
        o.save()
    status, layers, report = judge(folder, target)
    assert status == 1 and layers[layer][0] == REFUSED, layers
    assert word in layers[layer][1]
    refusals = [f for f in report["findings"] if word in f["found"]]
    assert refusals and all(f["severity"] == "failure" and f["expected"] for f in refusals)


# (target, output, what is done to it)
GOOD = [
    *[("vllm-ascend", name, None) for name in (
        "w8a8", "dynamic", "mix", "w8a16", "several", "c8-wide", "c8-qwen3", "ct", "ct-dynamic",
        "ct-several", "shifted", "all")],
    *[("vllm-ascend@0.23", name, None) for name in (
        "w8a8", "dynamic", "mix", "w8a16", "several", "c8-qwen3", "ct", "shifted")],
    *[(f"vllm-ascend@{v}", "c8-wide", None) for v in ("0.25", "v0.26.0", "main")],
    *[(t, "dynamic", experts()) for t in ("vllm-ascend", "vllm-ascend@0.23", "sglang")],
    *[(t, "dynamic", experts("W4A8_DYNAMIC")) for t in ("vllm-ascend", "vllm-ascend@0.23", "sglang")],
    ("vllm-ascend", "dynamic", experts("FLOAT")),
    ("vllm-ascend", "dynamic", experts("FLOAT", "mixtral", "block_sparse_moe", ("w1", "w3", "w2"))),
    ("vllm-ascend@0.26", "mix", experts()),
    ("vllm-ascend@0.26", "dynamic", retype(DOWN, "W4A8_DYNAMIC", **STAGED)),
    ("vllm-ascend@0.23", "dynamic", experts("W4A8_DYNAMIC", change=types(group_size=128))),
    ("vllm-ascend", "fa", both(KV_LORA, types(fa_quant_type="FAKQuant"))),
    *[("sglang", name, None) for name in ("w8a8", "dynamic", "several", "ct-dynamic", "shifted")],
    *[("mindie", name, None) for name in ("safe", "safe-several", "safe-mix", "safe-w8a16", "fa-safe",
                                          "c8-safe", "all")],
    ("mindie@3.1.0", "safe", None),
    *[("vllm", name, None) for name in ("ct", "ct-zero-points", "ct-dynamic", "ct-w8a16", "ct-several",
                                        "all")],
    ("vllm@0.33", "ct", None),
]


@pytest.mark.parametrize("target,name,action", GOOD)
def test_loads(target, name, action, outputs, tmp_path):
    folder = outputs(name)
    if action:
        folder = shutil.copytree(folder, tmp_path / "out")
        o = Output(folder)
        action(o)
        o.save()
    status, layers, report = judge(folder, target)
    assert {verdict for verdict, _ in layers.values()} == {LOADS}, report
    assert {Q, K, V, DOWN} - layers.keys() <= ({DOWN} if action else set())
    engine, _, version = target.partition("@")
    assert report["target"]["engine"] == engine
    if version:
        assert version.lstrip("v").startswith(report["target"]["version"])
    if not action:  # else other rules speak of what is made up
        assert status == 0, report["findings"]


# (target, output, what is done to it, layer, verdict, word)
WARNED = [
    ("sglang", "fa", None, ATTENTION, FLOATS, "computes in floats"),
    ("vllm-ascend", "c8-wide", types(kv_cache_type=None), ATTENTION, FLOATS, "kv_cache_type"),
    ("mindie", "safe-w8a16", set_config("model_type", value="mistral"), Q, UNKNOWN, "Qwen2-72B"),
    ("mindie", "fa-safe", set_config("model_type", value="qwen2"), ATTENTION, UNKNOWN, "70B"),
    ("mindie", "c8-safe", set_config("model_type", value="mistral"), ATTENTION, UNKNOWN, "70B"),
    ("sglang", "ct-w8a16", None, Q, UNKNOWN, "no source"),
]


@pytest.mark.parametrize("case", WARNED, ids=lambda c: f"{c[0]}-{c[1]}-{c[4]}")
def test_warned(case, outputs, tmp_path):
    target, name, action, layer, verdict, word = case
    folder = shutil.copytree(outputs(name), tmp_path / "out")
    if action:
        o = Output(folder)
        action(o)
        o.save()
    _, layers, report = judge(folder, target)
    assert layers[layer][0] == verdict and word in layers[layer][1], layers[layer]
    assert REFUSED not in {v for v, _ in layers.values()}
    finding, = [f for f in report["findings"] if word in f["found"] and f["tensor"].endswith(
        layer.split(".0.")[1])]
    assert finding["severity"] == "warning"


# ---- What is printed

def test_text(outputs):
    done = run_tare("verify", outputs("w8a16"), "--target", "sglang")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-1] == "sglang main: of 14 layers 0 load, 0 run unquantized, 14 are refused"
    assert len(lines) == 8  # a line for each linear of a block, not for each layer
    assert all(line.startswith("failure: rule 30: model.layers.*.") and "found 2 layers that sglang "
               "main refuses: " in line for line in lines[:-1])
    done = run_tare("verify", outputs("fa"), "--target", "sglang")
    assert done.returncode == 0
    assert "sglang main: of 16 layers 14 load, 2 run unquantized, 0 are refused" in done.stdout
    done = run_tare("verify", outputs("w8a8"), "--target", "mindie")
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 2
    assert "failure: rule 0: *: found 14 layers that mindie 3.1 refuses" in done.stdout


def test_without_a_target(outputs):
    report = json.loads(run_tare("verify", outputs("w8a8"), "--json").stdout)
    assert report.keys() == {"findings", "layout", "tensors", "failures", "warnings"}


@pytest.mark.parametrize("target,known", [
    ("tgi", ["vllm-ascend@0.23", "sglang@main", "mindie@3.1", "vllm@0.33"]), ("", ["vllm-ascend@main"]),
    ("vllm-ascend@0.22", ["vllm-ascend@0.23", "vllm-ascend@main"]), ("vllm@", ["vllm@0.33"]),
    ("sglang@0.5", ["sglang@main"]), ("vllm-ascend@0.23,sglang", ["vllm-ascend@0.23"])])
def test_unknown_targets(target, known, models, outputs, tmp_path):
    for args in (["verify", outputs("w8a8")],
                 ["quantize", models["llama"], "--out", tmp_path / "out", "--scheme", "w8a8_dynamic"]):
        done = run_tare(*args, "--target", target)
        assert done.returncode == 2 and "is unknown; known are" in done.stderr
        assert all(name in done.stderr for name in known), done.stderr
        assert not (tmp_path / "out").exists()


# ---- Before a run

# (target, model, flags, layer that is named, words)
BEFORE = [
    ("vllm-ascend", "llama", ["--fa-quant"], ATTENTION, ["and 1 other layer", "no fa_quant"]),
    ("vllm-ascend", "llama", ["--fa-quant", "--fa-amp", "1"], ATTENTION, ["and 1 other layer"]),
    ("vllm-ascend", "llama", ["--kv-cache", "c8"], ATTENTION, ["32"]),
    ("vllm-ascend@0.24", "wide", ["--kv-cache", "c8"], ATTENTION, ["vllm-ascend 0.25"]),
    ("vllm-ascend", "llama", ["--save", C, "--no-act-sym"], Q, ["13 other layers", "--act-sym"]),
    ("vllm-ascend", "llama", ["--save", C, "--a-bit", "16"], Q, ["13 other layers", "ascendv1"]),
    ("vllm-ascend", "llama", ["--a-bit", "16", "--no-w-sym"], Q, ["w_sym true"]),
    ("vllm-ascend", "llama", ["--save", f"{S},{N}"], "", ["save.types", "save as ascendv1"]),
    ("sglang", "llama", ["--mix", "model.layers.1.mlp.down_proj=w8a16"],
     "model.layers.1.mlp.down_proj:", ["w8a8 or w8a8_dynamic"]),
    ("sglang", "llama", ["--scheme", "w8a8_mix"], Q, ["13 other layers"]),
    ("sglang", "wide", ["--kv-cache", "c8"], ATTENTION, ["no kv_cache"]),
    ("sglang", "llama", ["--save", C], Q, ["w8a8_dynamic"]),
    ("mindie", "llama", [], "", ["save.types", "save as safe_tensor"]),
    ("mindie", "llama", ["--save", N], "", ["save.types", "save as safe_tensor"]),
    ("vllm", "llama", [], "", ["save.types", "save as compressed-tensors"]),
]


@pytest.mark.parametrize("case", BEFORE, ids=lambda c: " ".join([c[0], *c[2]]))
@pytest.mark.parametrize("extra", [[], ["--dry-run", "--no-probe"], ["--no-verify"]], ids=" ".join)
def test_refused_before_any_work(case, extra, models, prompts, tmp_path):
    target, model, flags, layer, words = case
    done = run_tare("quantize", models[model], "--out", tmp_path / "out", "--calib", prompts,
                    "--target", target, *flags, *extra)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert all(word in last for word in [layer, target.partition("@")[0], *words]), last
    assert "calibrate" not in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("target,flags", [
    ("vllm-ascend", []), ("vllm-ascend@0.23", ["--scheme", "w8a8_mix"]), ("sglang", []),
    ("vllm-ascend", ["--fa-quant", "--fa-amp", "2"]), ("mindie", ["--save", f"{A},{S},{C}"]), ("vllm", ["--save", C]), ("vllm-ascend", ["--save", C]),
    ("vllm", ["--save", f"{A},{C}", "--no-act-sym"])])
def test_what_loads_runs(target, flags, models, prompts, tmp_path):
    out = tmp_path / "out"
    done = run_tare("quantize", models["llama"], "--out", out, "--calib", prompts, "--target", target,
                    *flags)
    assert done.returncode == 0 and "run.target" not in done.stderr, done.stderr
    status, layers, _ = judge(out, target)
    assert status == 0 and {v for v, _ in layers.values()} == {LOADS}
    record = json.loads(next(out.rglob("tare_run.json")).read_text())
    assert record["recipe"]["run"]["target"].startswith(target)


@pytest.mark.parametrize("family", sorted(test_families.FAMILIES))
@pytest.mark.parametrize("target,save", [("vllm-ascend", A), ("vllm", C)])
def test_every_family(family, target, save, prompts, tmp_path):
    changes, make = test_families.FAMILIES[family]
    model = tiny.write_checkpoint(tmp_path / "model", make(), **changes)
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", prompts, "--save", save,
                    "--target", target)
    assert done.returncode == 0, done.stderr
    status, layers, _ = judge(tmp_path / "out", target)
    assert status == 0 and {v for v, _ in layers.values()} == {LOADS}


def test_what_runs_unquantized_is_a_warning(models, prompts, tmp_path):
    done = run_tare("quantize", models["llama"], "--out", tmp_path / "out", "--calib", prompts,
                    "--target", "sglang", "--fa-quant")
    assert done.returncode == 0
    assert "model.layers.*.self_attn (2 layers) sglang main runs unquantized" in done.stderr


def test_recipe(models, prompts, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    args = ["quantize", models["llama"], "--out", tmp_path / "out", "--calib", prompts, "--recipe", recipe]
    recipe.write_text("fa_quant: true\nrun: {target: vllm-ascend@0.23}\n")
    done = run_tare(*args)
    assert done.returncode == 2 and "vllm-ascend 0.23 would refuse" in done.stderr
    recipe.write_text("run: {target: vllm-ascend@0.22}\n")
    done = run_tare(*args)
    assert done.returncode == 2 and "line 1" in done.stderr and "vllm-ascend@0.26" in done.stderr
    recipe.write_text("run: {target: mindie}\n")
    assert run_tare(*args, "--target", "none").returncode == 0  # a flag wins
    record = json.loads((tmp_path / "out" / "tare_run.json").read_text())
    assert record["recipe"]["run"]["target"] is None


# ---- The reference's outputs

ASCEND_LINEARS = {"FLOAT", "W8A8", "W8A8_DYNAMIC", "W8A8_MIX", "W8A16"}
ASCEND_EXPERTS = {"FLOAT", "W8A8_DYNAMIC", "W4A8_DYNAMIC"}
SGLANG_LINEARS, SGLANG_EXPERTS = {"FLOAT", "W8A8", "W8A8_DYNAMIC"}, {"W8A8_DYNAMIC", "W4A8_DYNAMIC"}
FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate", "up_proj": "gate",
         "q_a_proj": "qkv_a", "kv_a_proj_with_mqa": "qkv_a"}
RUNS = {f"{case.parent.name}/{case.name}": case
        for root in (GOLDEN, SHARED / "golden") for case in sorted(root.glob("*/*/"))
        if (case / "tensors.safetensors").exists() and list(case.glob("quant_model_description*.json"))}
# Names that are wrong in the reference's own files: empty tensors of C8 on Qwen3
RUNS.pop("qwen3/kv8", None)


class Run:
    """A golden case: its tensors, their types, and what the specification says of its layers."""

    def __init__(self, case):
        self.tensors = tensor_file.read(case / "tensors.safetensors")
        self.types = json.loads(next(case.glob("quant_model_description*.json")).read_text())
        self.config = json.loads((case.parent / "model" / "config.json").read_text())
        dtype = json.loads((case / "case.json").read_text()).get("dtype", "fp32")
        self.config["torch_dtype"] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype]
        self.float = tensor_file.read(case.parent / "model" / "model.safetensors")

    def write(self, folder, layout):
        folder.mkdir()
        quant_type = self.types["model_quant_type"].lower()
        ascend = layout == A
        tensor_file.write(folder / f"quant_model_weight_{quant_type}.safetensors", self.tensors)
        name = "" if ascend else f"_{quant_type}"
        (folder / f"quant_model_description{name}.json").write_text(json.dumps(self.types))
        config = dict(self.config) if ascend else {**self.config, "quantize": quant_type}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def linears(self):
        return {n[:-len(".weight")]: self.types[n] for n in self.tensors
                if n.endswith(".weight") and n in self.types and self.types[n] != "FLOAT"
                and ".module." not in n and "norm" not in n}

    def differs(self, module):
        """Has its fused group, or its layer's experts, several types?"""
        parent, _, last = module.rpartition(".")
        block = module.split(".experts.")[0] if ".experts." in module else None
        kinds = set()
        for name, kind in self.types.items():
            other, _, end = name.rpartition(".")
            if end != "weight" or name not in self.tensors or ".module." in name:
                continue
            p, _, o = other.rpartition(".")
            if block and other.startswith(block + ".experts."):
                kinds.add(kind)
            elif not block and p == parent and last in FUSED and FUSED.get(o) == FUSED[last]:
                kinds.add(kind)
        return len(kinds) > 1

    def expected(self, module, kind, engine):
        is_expert = ".experts." in module
        known = {"vllm-ascend": (ASCEND_LINEARS, ASCEND_EXPERTS),
                 "sglang": (SGLANG_LINEARS, SGLANG_EXPERTS)}[engine][is_expert]
        scale = self.tensors.get(module + ".weight_scale")
        groups = scale is not None and scale.data.ndim == 2 and scale.data.shape[1] > 1
        offsets = self.tensors.get(module + ".weight_offset")
        new_bias = module + ".bias" in self.tensors and module + ".bias" not in self.float
        refused = (kind not in known or groups or self.differs(module)
                   or (kind == "W8A16" and offsets is not None and np.any(offsets.data != 0))
                   or (new_bias and kind != "W8A8"))
        if engine == "vllm-ascend" and is_expert and self.config["model_type"] == "mixtral":
            refused = True
        if engine == "sglang" and kind == "W4A8_DYNAMIC" and self.types.get("group_size", 0) > 0:
            refused = True
        return REFUSED if refused else LOADS


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("engine", ["vllm-ascend", "sglang"])
def test_golden(case, engine, tmp_path):
    run = Run(RUNS[case])
    _, layers, _ = judge(run.write(tmp_path / "out", A), engine, "--compat", "msmodelslim")
    assert layers
    for module, kind in run.linears().items():
        assert layers[module][0] == run.expected(module, kind, engine), (module, kind, layers[module])
    latent = run.config.get("kv_lora_rank")
    for name in run.tensors:
        attention, _, part = name.rpartition(".self_attn.")
        if part == "fa_q.scale":  # the name of the key is FAQuant in the reference's files
            verdict = {"vllm-ascend": REFUSED, "sglang": UNKNOWN if latent else FLOATS}[engine]
            assert layers[attention + ".self_attn"][0] == verdict
        if part == "k_proj.kv_cache_scale":
            offsets = [run.tensors[f"{attention}.self_attn.{x}_proj.kv_cache_offset"] for x in "kv"]
            size = run.config.get("head_dim") or (run.config["hidden_size"]
                                                  // run.config["num_attention_heads"])
            loads = (engine == "vllm-ascend" and size % 32 == 0
                     and not any(x.data.any() for x in offsets))
            assert layers[attention + ".self_attn"][0] == (LOADS if loads else REFUSED)


@pytest.mark.parametrize("case", [name for name, c in RUNS.items() if list(c.glob("*_w8a8*.json"))])
def test_golden_for_mindie(case, tmp_path):
    """Static and dynamic linears load; of a model that has both all are read by model_quant_type."""
    run = Run(RUNS[case])
    linears = run.linears()
    _, layers, _ = judge(run.write(tmp_path / "out", S), "mindie", "--compat", "msmodelslim")
    several = {"W8A8", "W8A8_DYNAMIC"} <= set(linears.values())
    by_other = several and run.types["model_quant_type"] != "W8A8_DYNAMIC"
    for module, kind in linears.items():
        if kind in ("W8A8", "W8A8_DYNAMIC") and not run.differs(module) and ".experts." not in module:
            new_bias = module + ".bias" in run.tensors and module + ".bias" not in run.float
            verdict = REFUSED if by_other else UNKNOWN if new_bias and kind != "W8A8" else LOADS
            assert layers[module][0] == verdict, (module, kind, layers[module])

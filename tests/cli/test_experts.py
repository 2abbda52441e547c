"""Mixtures of experts and latent attention from outside: `tare quantize` of the weights alone, by the
tiny models of the golden cases. (Logits: tests/golden/test_logits.py.)"""
import json
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import GOLDEN, TARE_BIN, output_files, run_tare

A, S, N, C = SAVES = ("ascendv1", "safe_tensor", "numpy", "compressed-tensors")
MODELS = {  # model: float linears beside lm_head, by the ends of their names
    "qwen3_moe": (".mlp.gate",),
    "mixtral": (".block_sparse_moe.gate",),
    "deepseek_v2": (".mlp.gate", ".kv_b_proj"),
    "deepseek_v2_lite": (".mlp.gate", ".kv_b_proj"),
    "deepseek_v3": (".mlp.gate", ".kv_b_proj"),
    "deepseek_v3_noq": (".mlp.gate", ".kv_b_proj"),
}
SCHEMES = ("w8a8_dynamic", "w8a16")
BIAS = ".e_score_correction_bias"


def variant(folder, model, change=None, form="model", **config):
    """A copy of a golden model with other keys of config.json, and tensors that `change` changed."""
    shutil.copytree(GOLDEN / model / form, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if change:
        tensors = tensor_file.read_folder(folder)
        change(tensors)
        tensor_file.write(folder / "model.safetensors", tensors)
    return folder


def run(model, out, *flags):
    return run_tare("quantize", model, "--out", out, *(flags or ("--scheme", "w8a8_dynamic")))


def quantize(model, out, *flags):
    done = run(model, out, *flags)
    assert done.returncode == 0, done.stderr
    return done


def linears(model, source):
    """(those to quantize, those that stay float): matrices but for the embedding and the head."""
    names = [name.removesuffix(".weight") for name, t in source.items()
             if t.data.ndim == 2 and "embed_tokens" not in name and name != "lm_head.weight"]
    floats = [name for name in names if name.endswith(MODELS[model])]
    assert floats
    return [name for name in names if name not in floats], floats


def by_hand(w, tag):
    """Codes and scales of spec/w8a8.md, section 3: symmetric, a scale for each row."""
    scale = np.abs(w.astype(np.float64)).max(axis=1, keepdims=True) / 127
    scale = np.maximum(tensor_file.round_to(scale, tag), np.finfo(np.float32).eps)
    return np.clip(np.rint(w / scale), -128, 127), scale


def codes_of(tensors, name):
    """INT8; the packed form of compressed-tensors holds four of a row in an I32, 128 added to each."""
    if name + ".weight" in tensors:
        assert tensors[name + ".weight"].tag == "I8"
        return tensors[name + ".weight"].data
    packed = tensors[name + ".weight_packed"].data
    return packed.view(np.uint8).reshape(len(packed), -1).astype(int) - 128


def description(folder):
    path, = folder.glob("quant_model_description*.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module", params=[(m, s) for m in MODELS for s in SCHEMES], ids=" ".join)
def made(request, tmp_path_factory):
    """(model, scheme, output in all save types)"""
    model, scheme = request.param
    out = tmp_path_factory.mktemp("experts") / "out"
    quantize(GOLDEN / model / "model", out, "--scheme", scheme, "--save", ",".join(SAVES))
    return model, scheme, out


def test_every_linear_by_hand(made):
    """Each expert's as well as attention's, whether or not a token ever reaches it."""
    model, _, out = made
    source = tensor_file.read_folder(GOLDEN / model / "model")
    quantized, _ = linears(model, source)
    assert sum(".experts." in name for name in quantized) >= 24
    files = [tensor_file.read_folder(out / save) for save in (A, S, C)]
    npy = {part: np.load(out / S / f"{file}.npy", allow_pickle=True).item()
           for part, file in (("weight", "quant_weight"), ("weight_scale", "weight_scale"),
                              ("weight_offset", "weight_offset"))}
    for name in quantized:
        w = source[name + ".weight"]
        codes, scale = by_hand(w.data, w.tag)
        for tensors in files:
            np.testing.assert_array_equal(codes_of(tensors, name), codes, name)
            np.testing.assert_array_equal(tensors[name + ".weight_scale"].data, scale, name)
        assert not any(t[name + ".weight_offset"].data.any() for t in files[:2])
        np.testing.assert_array_equal(npy["weight"][name], codes, name)
        np.testing.assert_array_equal(npy["weight_scale"][name], scale, name)
        assert not npy["weight_offset"][name].any()
    assert set(npy["weight_scale"]) == set(quantized)


def test_what_stays_float(made):
    """The router, kv_b_proj, the correction of the router and all norms, bit by bit."""
    model, _, out = made
    source = tensor_file.read_folder(GOLDEN / model / "model")
    quantized, floats = linears(model, source)
    same = set(source) - {name + ".weight" for name in quantized}
    assert {name + ".weight" for name in floats} < same
    assert any(name.endswith(BIAS) for name in same) == model.startswith("deepseek_v3")
    for save in (A, S, C):
        tensors = tensor_file.read_folder(out / save)
        for name in same:
            assert tensors[name].tag == source[name].tag
            np.testing.assert_array_equal(tensors[name].data, source[name].data, name)


def test_description(made):
    model, scheme, out = made
    source = tensor_file.read_folder(GOLDEN / model / "model")
    quantized, _ = linears(model, source)
    want = dict.fromkeys(source, "FLOAT")
    want |= {f"{name}.{part}": scheme.upper() for name in quantized
             for part in ("weight", "weight_scale", "weight_offset")}
    for save in (A, S):
        got = description(out / save)
        assert got["model_quant_type"] == scheme.upper()
        assert {name: kind for name, kind in got.items() if name in want} == want
        assert set(tensor_file.read_folder(out / save)) == set(want)
    config = json.loads((out / S / "config.json").read_text())
    assert config["quantize"] == scheme


def test_verify(made):
    """Against the source nothing is broken; the golden models have no tokenizer (rule 25), and one is
    FP32, for which engines take FP16 (rule 21)."""
    model, _, out = made
    for save in (A, S, C):
        done = run_tare("verify", out / save, "--base", GOLDEN / model / "model", "--json")
        report = json.loads(done.stdout)
        assert done.returncode == 0 and report["failures"] == 0
        findings = {finding["rule"] for finding in report["findings"]}
        assert findings - ({21} if model == "deepseek_v3" else set()) == {25}


def test_verdicts_of_vllm_ascend(made):
    """Section 1 of the scheme specification: routed experts need W8A8_DYNAMIC; Mixtral has no entry for
    experts."""
    model, scheme, out = made
    done = run_tare("verify", out / A, "--target", "vllm-ascend", "--json")
    layers = {layer["name"]: layer["verdict"] for layer in json.loads(done.stdout)["layers"]}
    experts = {name for name in layers if ".experts." in name}
    assert len(experts) >= 24
    fine = scheme == "w8a8_dynamic" and model != "mixtral"
    assert {layers[name] for name in experts} == {"loads" if fine else "is refused"}
    assert {layers[name] for name in set(layers) - experts} == {"loads"}
    assert done.returncode == (0 if fine else 1)


def test_a_target_that_refuses_experts(tmp_path):
    model = GOLDEN / "mixtral" / "model"
    flags = ["--scheme", "w8a8_dynamic", "--target", "vllm-ascend"]
    done = run(model, tmp_path / "out", *flags)
    assert done.returncode != 0 and "no names of fused experts for mixtral" in done.stderr
    assert not (tmp_path / "out").exists()
    quantize(model, tmp_path / "out", *flags, "--mix", "*.experts.*=float")
    kinds = description(tmp_path / "out")
    assert {kind for name, kind in kinds.items() if ".experts." in name} == {"FLOAT"}
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == "W8A8_DYNAMIC"


@pytest.mark.parametrize("model", MODELS)
def test_threads_and_budgets_change_nothing(model, tmp_path):
    flags = ["--scheme", "w8a8_dynamic", "--save", ",".join(SAVES)]
    folders = [tmp_path / name for name in ("one", "two", "small")]
    done = run(GOLDEN / model / "model", tmp_path / "refused", *flags, "--max-memory", "cpu=20MiB")
    smallest, = re.findall(r"the smallest budget that works here is (cpu=\d+MiB)", done.stderr)
    for out, more in zip(folders, (["--threads", 1], ["--threads", 2], ["--max-memory", smallest])):
        quantize(GOLDEN / model / "model", out, *flags, *more)
    assert output_files(folders[0]) == output_files(folders[1]) == output_files(folders[2])


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("flags", [*(["--scheme", scheme] for scheme in SCHEMES),
                                   ["--scheme", "w8a8_dynamic", "--mix", "*.self_attn.*=w8a16"]],
                         ids=" ".join)
def test_fp8_is_its_decoded_twin(flags, save, tmp_path):
    """Blocks that are cut in rows and columns, experts' among them; only the record of the run tells
    which of the two it was."""
    found = []
    for form in ("model", "model_bf16"):
        quantize(GOLDEN / "deepseek_v3_fp8" / form, tmp_path / form, *flags, "--save", save)
        found.append(output_files(tmp_path / form, record=False))
    assert found[0] == found[1] and len(found[0]) >= 3
    assert "quantization_config" not in found[0]["config.json"].decode() or save == C


def test_kimi_k2_is_a_deepseek_v3(tmp_path):
    """It keeps its model_type, which engines look at."""
    kimi = variant(tmp_path / "model", "deepseek_v3", model_type="kimi_k2")
    quantize(kimi, tmp_path / "a")
    quantize(GOLDEN / "deepseek_v3" / "model", tmp_path / "b")
    a, b = (tensor_file.read_folder(tmp_path / name) for name in "ab")
    assert set(a) == set(b)
    assert all(np.array_equal(a[name].data, b[name].data) for name in a)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model_type"] == "kimi_k2"


def test_zeros_are_named(tmp_path):
    """As in other linears, a sign of a download that was cut: in the first and the last expert."""
    names = [f"model.layers.2.mlp.experts.{e}.{kind}_proj.weight"
             for e, kind in ((0, "gate"), (7, "down"))]

    def clear(tensors):
        for name in names:
            tensors[name] = tensor_file.Tensor("F32", np.zeros_like(tensors[name].data))
    model = variant(tmp_path / "model", "deepseek_v3", clear)
    done = run(model, tmp_path / "out", "--scheme", "w8a8_dynamic", "--dry-run", "--no-probe")
    found, = (line for line in done.stderr.splitlines() if "zero throughout" in line)
    assert "2 weights" in found and all(name in found for name in names)


# ---- resuming

def many_experts(folder):
    """Three layers of 48 experts: a Qwen3-MoE."""
    config = dict(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_hidden_layers=3,
                  num_experts=48, num_experts_per_tok=2, moe_intermediate_size=24,
                  intermediate_size=24)
    tensors = {}
    for name, (tag, x) in tiny.make_tensors({**tiny.CONFIG, **config}).items():
        if ".mlp." not in name:
            tensors[name] = (tag, x)
            continue
        rng = np.random.default_rng(len(tensors))
        layer, part = name.split(".mlp.")
        for e in range(48):
            tensors[f"{layer}.mlp.experts.{e}.{part}"] = (tag, x + rng.normal(0, 0.1, x.shape))
        tensors[layer + ".mlp.gate.weight"] = (tag, rng.normal(0, 1, (48, 32)))
        tensors |= {f"{layer}.self_attn.{kind}_norm.weight": (tag, np.ones(8)) for kind in "qk"}
    return tiny.write_checkpoint(folder, tensors, **config)


def kill_at(model, out, line, *flags):
    """Kills a run at a line of its report; does the journal tell of a layer?"""
    command = [TARE_BIN, "quantize", model, "--out", out, "--verbose", *flags]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True) as process:
        for number, _ in enumerate(process.stderr):
            if number == line:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate(timeout=60)
    journal = out / ".tare" / "journal"
    return journal.exists() and len(journal.read_bytes().splitlines()) > 1


@pytest.mark.parametrize("save", [f"{A},{C}", f"{S},{N}"])
def test_resume_in_the_middle_of_experts(save, tmp_path):
    model = many_experts(tmp_path / "model")
    flags = ["--scheme", "w8a8_dynamic", "--save", save]
    done = quantize(model, tmp_path / "whole", *flags, "--verbose")
    lines = len(done.stderr.splitlines())
    flags += ["--checkpoint-every", 1, "--resume"]
    for number, share in enumerate((0.35, 0.5, 0.62)):  # behind the first layer; a busy machine may
        out = tmp_path / f"out{number}"                 # let the run go on for a while
        for _ in range(20):
            shutil.rmtree(out, ignore_errors=True)
            if kill_at(model, out, int(share * lines), *flags):
                break
        else:
            raise AssertionError("never stopped in the middle")
        done = quantize(model, out, *flags, "--threads", number + 1)
        assert output_files(out) == output_files(tmp_path / "whole")


# ---- bad input: nothing is written

EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
SCALE = "model.layers.1.mlp.experts.1.gate_proj.weight_scale_inv"
CORRECTION = "model.layers.2.mlp.gate" + BIAS


def without(name):
    return lambda tensors: tensors.pop(name)


def shaped(name, *shape):
    def change(tensors):
        tensors[name] = tensor_file.Tensor("F32", np.ones(shape, np.float32))
    return change


def assert_refused(done, out, code, *words):
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("model,change,word", [
    ("deepseek_v3", without(EXPERT), f"tensor {EXPERT} is missing from the checkpoint"),
    ("mixtral", without("model.layers.1.block_sparse_moe.experts.7.w2.weight"),
     "model.layers.1.block_sparse_moe.experts.7.w2.weight is missing"),
    ("deepseek_v3", without("model.layers.2.mlp.gate.weight"), "layers.2.mlp.gate.weight is missing"),
    ("deepseek_v3", without(CORRECTION), f"tensor {CORRECTION} is missing"),
    ("deepseek_v3", shaped(CORRECTION, 7), f"{CORRECTION} has shape [7], config.json makes it [8]"),
    ("deepseek_v3", shaped(EXPERT, 31, 64),
     f"{EXPERT} has shape [31,64], config.json makes it [32,64]"),
    ("deepseek_v3_fp8", without(SCALE), f"tensor {SCALE} is missing from the checkpoint"),
    ("deepseek_v3_fp8", shaped(SCALE, 3, 3), f"{SCALE} has shape [3,3], config.json makes it [1,1]"),
], ids=lambda x: x if isinstance(x, str) else "")
def test_tensors_that_do_not_fit(model, change, word, tmp_path):
    folder = variant(tmp_path / "model", model, change)
    assert_refused(run(folder, tmp_path / "out"), tmp_path / "out", 1, str(folder), word)


@pytest.mark.parametrize("model,config,word", [
    ("deepseek_v3", dict(n_routed_experts=4, n_group=2),
     "mlp.gate.weight has shape [8,64], config.json makes it [4,64]"),
    ("qwen3_moe", dict(num_experts=9),
     "layers.0.mlp.gate.weight has shape [8,64], config.json makes it [9,64]"),
    ("deepseek_v3", dict(topk_method="greedy"),
     'topk_method "greedy" is not supported for deepseek_v3; supported: noaux_tc'),
    ("deepseek_v2", dict(topk_method="best"), 'topk_method "best" is not supported for deepseek_v2; '
                                              "supported: greedy, group_limited_greedy"),
    ("deepseek_v3", dict(scoring_func="softmax"), 'scoring_func "softmax"'),
    ("deepseek_v3", dict(n_group=3), "n_group 3 does not divide the 8 experts"),
    ("deepseek_v3", dict(n_group=8), "n_group 8 leaves groups of 1 experts"),
    ("deepseek_v2", dict(topk_group=5), "topk_group 5 is more than n_group 4"),
    ("deepseek_v3", dict(num_experts_per_tok=9), "num_experts_per_tok is out of range; a whole number "
                                                 "from 1 to 8"),
    ("deepseek_v3", dict(num_experts_per_tok=5), "num_experts_per_tok 5 is more than topk_group 2 "
                                                 "groups have"),
    ("mixtral", dict(num_experts_per_tok=0), "num_experts_per_tok is out of range"),
    ("deepseek_v3", dict(moe_layer_freq=2), "moe_layer_freq 2 is not supported; supported: 1"),
    ("deepseek_v3", dict(rope_interleave=False), "rope_interleave false is not supported"),
    ("deepseek_v2", dict(qk_rope_head_dim=7), "qk_rope_head_dim 7 is odd"),
    ("qwen3_moe", dict(mlp_only_layers="1"), "mlp_only_layers must be a list of numbers of layers"),
    ("qwen3_moe", dict(mlp_only_layers=["1"]), "mlp_only_layers must be a list of numbers of layers"),
    ("qwen3_moe", dict(decoder_sparse_step=0), "decoder_sparse_step is out of range"),
], ids=str)
def test_configs_that_do_not_fit(model, config, word, tmp_path):
    folder = variant(tmp_path / "model", model, **config)
    assert_refused(run(folder, tmp_path / "out"), tmp_path / "out", 1, str(folder), word)


LAYER = "model.layers.1.mlp."


@pytest.mark.parametrize("mix,words", [
    ("*.experts.*=w8a8", [f"{LAYER}experts.0.gate_proj would be w8a8 (by *.experts.*)",
                          "no engine has a kernel in experts"]),
    ("*.experts.*=w8a8_mix", [f"{LAYER}experts.0.gate_proj would be w8a8_mix"]),
    ("*.experts.3.*=w8a16", ["all experts of a layer to be of one type", f"{LAYER}experts.0.gate_proj "
                             "(w8a8_dynamic, by the scheme of the run)",
                             f"{LAYER}experts.3.gate_proj (w8a16, by *.experts.3.*)"]),
    ("*.experts.3.*=float", ["all experts of a layer to be of one type"]),
    ("*.experts.*.down_proj=w8a16", ["all experts of a layer to be of one type"]),
    ("*.experts.*.up_proj=w8a16", [f"engines fuse {LAYER}experts.0.gate_proj, "
                                   f"{LAYER}experts.0.up_proj, which need one type"]),
    ("*.q_a_proj=w8a16", ["engines fuse model.layers.0.self_attn.q_a_proj, "
                          "model.layers.0.self_attn.kv_a_proj_with_mqa"]),
    ("*.mlp.gate=w8a16", ['"*.mlp.gate" says w8a16 of', "which stays float"]),
    (f"{LAYER}gate=w8a8_dynamic", [f"of {LAYER}gate, which stays float"]),
    ("*.kv_b_proj=w8a16", ["kv_b_proj, which stays float"]),
    ("*.experts.8.*=w8a16", ["names no linear layer of this model"]),
], ids=lambda x: x if isinstance(x, str) else "")
def test_mixes_that_engines_cannot_load(mix, words, tmp_path):
    done = run(GOLDEN / "deepseek_v3" / "model", tmp_path / "out", "--scheme", "w8a8_dynamic",
               "--mix", mix)
    assert_refused(done, tmp_path / "out", 2, *words)


@pytest.mark.parametrize("mix,kinds", [
    ("*.mlp.*=w8a16", {"experts.0.up_proj": "W8A16", "shared_experts.up_proj": "W8A16",
                       "gate": "FLOAT"}),
    ("*.experts.*=w8a16", {"experts.7.down_proj": "W8A16", "shared_experts.up_proj": "W8A8_DYNAMIC"}),
    ("*.shared_experts.*=float", {"experts.7.down_proj": "W8A8_DYNAMIC",
                                  "shared_experts.up_proj": "FLOAT"}),
    ("*.gate=float,*.experts.*=float", {"gate": "FLOAT", "experts.3.gate_proj": "FLOAT"}),
])
def test_mixes_that_are_possible(mix, kinds, tmp_path):
    quantize(GOLDEN / "deepseek_v3" / "model", tmp_path / "out", "--scheme", "w8a8_dynamic",
             "--mix", mix)
    found = description(tmp_path / "out")
    assert {name: found[f"{LAYER}{name}.weight"] for name in kinds} == kinds
    assert found["model_quant_type"] == "W8A8_DYNAMIC"


def test_one_float_expert_makes_all_of_its_layer_float(tmp_path):
    done = quantize(GOLDEN / "deepseek_v3" / "model", tmp_path / "out", "--scheme", "w8a8_dynamic",
                    "--disable-names", f"{LAYER}experts.3.up_proj")
    found = description(tmp_path / "out")
    kinds = [{kind for name, kind in found.items() if name.startswith(f"model.layers.{i}.mlp.experts.")}
             for i in (1, 2)]
    assert kinds == [{"FLOAT"}, {"W8A8_DYNAMIC"}]
    assert "all experts of its layer are kept float" in done.stderr


def test_key_value_scales_of_latent_attention(tmp_path):
    done = run(GOLDEN / "deepseek_v3" / "model", tmp_path / "out", "--scheme", "w8a8_dynamic",
               "--kv-cache", "c8")
    assert_refused(done, tmp_path / "out", 2, "deepseek_v3 models have latent attention")


def test_statistics_of_latent_attention(tmp_path):
    """Its cache holds one vector for keys and values: there is no range of either. (Values of this
    model are narrower than keys, so that rows of one width would run into the next.)"""
    folder = GOLDEN / "deepseek_v3_noq"
    for out in ("a", "b"):
        quantize(folder / "model", tmp_path / out, "--calib", folder / "calib_ids.json")
    a, b = (tmp_path / out / "tare" / "tare_stats.safetensors" for out in ("a", "b"))
    names = tensor_file.read(a)
    assert any(name.endswith(".input_range") for name in names)
    assert not [name for name in names if name.endswith((".key_range", ".value_range"))]
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("model", ["qwen3_moe", "mixtral", "deepseek_v3_noq"])
@pytest.mark.parametrize("flags", [("--save", "numpy,safe_tensor"), ("--disable-level", "L1"),
                                   ("--act-method", "3"), ("--anti-method", "m6", "--save", "numpy"),
                                   ("--fa-quant", "--fa-amp", "0", "--save", "numpy")])
def test_retype_makes_the_same(model, flags, tmp_path):
    folder = GOLDEN / model
    quantize(folder / "model", tmp_path / "a", "--calib", folder / "calib_ids.json", *flags)
    done = run_tare("retype", tmp_path / "a", "--base", folder / "model", "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    a, b = (output_files(tmp_path / out, record=False) for out in ("a", "b"))
    assert a.keys() == b.keys() and [name for name in a if a[name] != b[name]] == []


def test_key_value_scales_of_a_float_stream(tmp_path):
    """compat looks at projections of the float stream, of which experts have none."""
    folder = GOLDEN / "mixtral"
    quantize(folder / "model", tmp_path / "out", "--calib", folder / "calib_ids.json",
             "--kv-cache", "c8", "--compat", "msmodelslim", "--save", "safe_tensor")
    tensors = tensor_file.read_folder(tmp_path / "out")
    assert sum(name.endswith(".kv_cache_scale") for name in tensors) == 2 * 2


@pytest.mark.parametrize("model", ["deepseek_v2", "deepseek_v3_noq"])
def test_time_is_estimated_with_scales_of_latent_attention(model, tmp_path):
    """The estimate runs on slices of weights, in which heads have not all their rows."""
    folder = GOLDEN / model
    done = run(folder / "model", tmp_path / "out", "--calib", folder / "calib_ids.json",
               "--fa-quant", "--dry-run")
    assert done.returncode == 0, done.stderr

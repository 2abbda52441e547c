"""Model families and rope types from outside. (Logits: tests/oracle/test_transformers.py.)"""
import json

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import run_tare

METHODS = ("m1", "m2", "m3", "m4", "m5", "m6")
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
    {"rope_scaling": {"type": "yarn", "factor": 8}, "max_position_embeddings": 60},
    {"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1.5, 2], "long_factor": [1, 3, 5, 9]},
     "original_max_position_embeddings": 60, "max_position_embeddings": 480}], ids=str)
def test_batches_and_threads_change_nothing(changes, tmp_path):
    """Prompts on both sides of the length where dynamic rope and longrope change, together and
    alone."""
    model = tiny.write_checkpoint(tmp_path / "model", **changes)
    calib = tiny.write_prompts(tmp_path / "prompts.jsonl", LONG + tiny.PROMPTS)
    a = quantize(model, calib, tmp_path / "a", "--threads", "1", "--batch-rows", "1",
                 "--max-length", "400")
    b = quantize(model, calib, tmp_path / "b", "--threads", "3", "--max-length", "400")
    assert_equal(a, b)


# ---- families with blocks of their own

def fuse(tensors, *groups):
    """Matrices one below the other: (names of the parts, name of the whole)."""
    tensors = dict(tensors)
    for layer in range(2):
        for parts, whole in groups:
            rows = [tensors.pop(f"model.layers.{layer}.{part}.weight")[1] for part in parts]
            tensors[f"model.layers.{layer}.{whole}.weight"] = ("BF16", np.concatenate(rows))
    return tensors


QKV = (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "self_attn.qkv_proj")
GATE_UP = (["mlp.gate_proj", "mlp.up_proj"], "mlp.gate_up_proj")


def phi3_tensors():
    return fuse(tiny.make_tensors(), QKV, GATE_UP)


def with_biases(tensors):
    """Of queries, keys and values."""
    rng = np.random.default_rng(1)
    biases = {name[:-len("weight")] + "bias": ("BF16", rng.normal(0, 0.2, len(x)))
              for name, (_, x) in tensors.items() if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))}
    return {**tensors, **biases}


def with_norms(tensors, *names):
    rng = np.random.default_rng(2)
    norms = {f"model.layers.{layer}.{name}.weight": ("BF16", rng.normal(1, 0.2, 32))
             for layer in range(2) for name in names}
    return {**tensors, **norms}


def glm_tensors():
    return fuse(with_biases(tiny.make_tensors()), GATE_UP)


def glm4_tensors():
    return with_norms(glm_tensors(), "post_self_attn_layernorm", "post_mlp_layernorm")


def gemma2_tensors():
    """Norms' weights count from 1."""
    tensors = with_norms(tiny.make_tensors(), "pre_feedforward_layernorm",
                         "post_feedforward_layernorm")
    return {name: (tag, x - 1 if x.ndim == 1 else x) for name, (tag, x) in tensors.items()}


PHI3 = dict(model_type="phi3", architectures=["Phi3ForCausalLM"])
def with_head_norms(tensors, mean):
    rng = np.random.default_rng(3)
    norms = {f"model.layers.{layer}.self_attn.{kind}_norm.weight":
             ("BF16", rng.normal(mean, 0.2, 8)) for layer in range(2) for kind in "qk"}
    return {**tensors, **norms}


def qwen3_tensors():
    return with_head_norms(tiny.make_tensors(), 1)


def gemma3_tensors():
    return with_head_norms(gemma2_tensors(), 0)


QWEN3_MOE = dict(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"],
                 mlp_only_layers=[0, 1])
FAMILIES = {
    "qwen3_moe": (QWEN3_MOE, qwen3_tensors),
    "phi3": (PHI3 | {"partial_rotary_factor": 0.5}, phi3_tensors),
    "gemma2": (dict(model_type="gemma2", architectures=["Gemma2ForCausalLM"], hidden_act=None),
               gemma2_tensors),
    "gemma3_text": (dict(model_type="gemma3_text", architectures=["Gemma3ForCausalLM"],
                         hidden_act=None, sliding_window_pattern=2), gemma3_tensors),
    "glm": (dict(model_type="glm", architectures=["GlmForCausalLM"]), glm_tensors),
    "glm4": (dict(model_type="glm4", architectures=["Glm4ForCausalLM"]), glm4_tensors),
}


def run_quantize(model, calib, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--calib", calib, *flags)
    assert done.returncode == 0, done.stderr
    return tensor_file.read_folder(out)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_keeps_the_function(family, method, calib, library, tmp_path):
    """Every linear stays float, so the output is the smoothed model: its logits are the source's.
    Its W8A8 form passes verify against the source."""
    changes, make = FAMILIES[family]
    wide = {name: ("F32", x) for name, (_, x) in make().items()}  # what smoothing moves stays exact
    changes = changes | {"torch_dtype": "float32"}
    model = tiny.write_checkpoint(tmp_path / "model", wide, **changes)
    smoothed = run_quantize(model, calib, tmp_path / "smoothed", "--anti-method", method,
                            "--disable-names", "*", "--compute", "fp32", "--save", "safe_tensor")
    source = tensor_file.read_folder(model)
    moved = {name for name, t in source.items() if not np.array_equal(t.data, smoothed[name].data)}
    assert any("input_layernorm" in name for name in moved)
    assert any("o_proj" in name for name in moved) == (method in ("m4", "m6"))
    # the files of the source around the smoothed tensors, since an output is no checkpoint
    tensor_file.write(model / "model.safetensors",
                      {name: ("F32", smoothed[name].data) for name in source})
    plain = tiny.write_checkpoint(tmp_path / "plain", wide, **changes)
    ids = list(range(3, 90, 2))
    with library.model(model) as a, library.model(plain) as b:
        expected = b.logits(ids)
        assert np.abs(a.logits(ids) - expected).max() < 1e-5 * np.abs(expected).max()
    run_quantize(plain, calib, tmp_path / "w8a8", "--anti-method", method)
    done = run_tare("verify", tmp_path / "w8a8", "--base", plain)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_balance_keeps_the_function(family, calib, library, tmp_path):
    """Fused rows, biases, norms of heads, channels that turn in part or as neighbours."""
    changes, make = FAMILIES[family]
    wide = {name: ("F32", x * 9 if "q_norm" in name else x) for name, (_, x) in make().items()}
    changes = changes | {"torch_dtype": "float32"}
    model = tiny.write_checkpoint(tmp_path / "model", wide, **changes)
    if family == "gemma3_text":
        done = run_tare("quantize", model, "--out", tmp_path / "refused", "--calib", calib, "--fa-quant",
                        "--fa-balance")
        assert done.returncode == 2 and "count from 1" in done.stderr
        return
    pair = [] if family == "qwen3_moe" else ["--anti-method", "balance"]
    balanced = run_quantize(model, calib, tmp_path / "balanced", "--fa-quant", "--fa-balance", *pair, "--scheme",
                            "w8a8_dynamic", "--mix", "*=float", "--compute", "fp32")
    source = tensor_file.read_folder(model)
    moved = {name for name, t in source.items() if not np.array_equal(t.data, balanced[name].data)}
    heads = ("q_norm", "k_norm") if any("q_norm" in name for name in source) else ("q_proj", "k_proj", "qkv_proj")
    assert all(any(part in name for part in (*heads, "up_proj", "down_proj")) for name in moved)
    assert any(part in name for name in moved for part in heads)
    assert any("down_proj" in name for name in moved) == bool(pair)
    tensor_file.write(model / "model.safetensors", {name: ("F32", balanced[name].data) for name in source})
    plain = tiny.write_checkpoint(tmp_path / "plain", wide, **changes)
    ids = list(range(3, 90, 2))
    with library.model(model) as a, library.model(plain) as b:
        expected = b.logits(ids)
        assert np.abs(a.logits(ids) - expected).max() < 1e-5 * np.abs(expected).max()
    done = run_tare("verify", tmp_path / "balanced", "--base", plain)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("flags", [[], ["--anti-method", "m1"], ["--anti-method", "m4"]], ids=str)
def test_phi3_is_a_llama_with_fused_matrices(flags, calib, tmp_path):
    """Without fusing the equations are the same; weights are quantized row by row."""
    llama = tiny.write_checkpoint(tmp_path / "llama", rms_norm_eps=1e-5)
    phi = tiny.write_checkpoint(tmp_path / "phi", phi3_tensors(), **PHI3)
    a, b = (run_quantize(model, calib, tmp_path / f"{model.name}.out", *flags)
            for model in (llama, phi))
    for layer in range(2):
        for parts, whole in (QKV, GATE_UP):
            names = [f"model.layers.{layer}.{part}" for part in parts]
            name = f"model.layers.{layer}.{whole}"
            for part in ("weight", "weight_scale", "quant_bias", "deq_scale"):
                rows = np.concatenate([a.pop(f"{n}.{part}").data for n in names])
                assert np.array_equal(rows, b.pop(f"{name}.{part}").data), (name, part)
            for part in ("weight_offset", "input_scale", "input_offset"):
                same = [a.pop(f"{n}.{part}").data for n in names]
                whole_one = b.pop(f"{name}.{part}").data
                assert all(np.array_equal(s.ravel(), whole_one.ravel()[:s.size]) for s in same)
    assert_equal(a, b)


def test_dense_qwen3_moe_is_a_qwen3(calib, tmp_path):
    """But for the smoothing of its MLPs, of which there is none beside layers with a router."""
    qwen3 = dict(model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    mlp = ",".join(f"model.layers.{i}.mlp.{kind}_proj" for i in range(2)
                   for kind in ("gate", "up", "down"))
    a, b = (run_quantize(tiny.write_checkpoint(tmp_path / c["model_type"], qwen3_tensors(), **c),
                         calib, tmp_path / (c["model_type"] + ".out"), "--anti-method", "m4", *flags)
            for c, flags in ((qwen3, ["--disable-anti-names", mlp]), (QWEN3_MOE, [])))
    assert_equal(a, b)


@pytest.mark.parametrize("changes,layer", [({"mlp_only_layers": None}, 0),
                                           ({"mlp_only_layers": [0]}, 1),
                                           ({"mlp_only_layers": [], "decoder_sparse_step": 2}, 1)],
                         ids=str)
def test_which_layers_have_experts(changes, layer, calib, tmp_path):
    """The first whose router is missed; tests/cli/test_experts.py has models with experts."""
    model = tiny.write_checkpoint(tmp_path / "model", qwen3_tensors(), **QWEN3_MOE | changes)
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib)
    assert done.returncode == 1
    assert f"tensor model.layers.{layer}.mlp.gate.weight is missing" in done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_follows_the_logits(family, library, tmp_path):
    """One token at a time against kept keys and values, as all at once: windows, caps, ropes."""
    changes, make = FAMILIES[family]
    model = tiny.write_checkpoint(tmp_path / "model", make(), **changes, sliding_window=7)
    with library.model(model) as m:
        for prompt in ([5, 6, 7], list(range(40, 80))):
            text, = m.generate([prompt], max_new_tokens=20)
            assert text
            logits = m.logits(prompt + text)[len(prompt) - 1:-1]
            best = logits.max(axis=1)
            assert (best - logits[np.arange(len(text)), text] < 1e-4).all()

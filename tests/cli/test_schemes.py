"""`tare quantize --scheme` and `--mix`: dynamic linears, linears static and dynamic in one, and
several schemes in one model."""
import json
from fnmatch import fnmatchcase

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import output_files, run_tare

LINEARS = [f"model.layers.{i}.{name}_proj" for i in range(2) for name in (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")]
WEIGHT_PARTS = {"weight", "weight_scale", "weight_offset"}
STATIC_PARTS = WEIGHT_PARTS | {"input_scale", "input_offset", "quant_bias", "deq_scale"}
PARTS = {"W8A8": STATIC_PARTS, "W8A8_MIX": STATIC_PARTS, "W8A8_DYNAMIC": WEIGHT_PARTS, "W8A16": WEIGHT_PARTS,
         "FLOAT": {"weight"}}
ALL = "ascendv1,safe_tensor,numpy,compressed-tensors"
THREE = "*.self_attn.*=w8a8,*.down_proj=w8a16,*=w8a8_dynamic"


def run(model, out, *flags):
    return run_tare("quantize", model, "--out", out, *flags)


def quantize(model, out, *flags):
    done = run(model, out, *flags)
    assert done.returncode == 0, done.stderr
    return done


def verify(folder, *flags):
    done = run_tare("verify", folder, *flags)
    assert done.returncode == 0, done.stdout
    return done.stdout


def description(folder):
    path, = folder.glob("quant_model_description*.json")
    return json.loads(path.read_text())


def types(folder):
    """{linear: type}, each of whose parts has that type."""
    kinds, found = description(folder), {}
    for name in LINEARS:
        parts = {key.removeprefix(name + "."): kind for key, kind in kinds.items()
                 if key.startswith(name + ".") and not key.endswith(".bias")}
        kind, = set(parts.values())
        assert set(parts) == PARTS[kind], name
        found[name] = kind
    return found


def assert_refused(done, out, *words):
    assert done.returncode == 2, (done.returncode, done.stderr)
    for word in words:
        assert word in done.stderr
    assert not out.exists() or not list(out.iterdir())


# ---- dynamic linears need no prompts

def test_dynamic_by_hand(model, tmp_path):
    done = quantize(model, tmp_path / "out", "--scheme", "w8a8_dynamic")
    assert "calibration" not in done.stdout
    assert types(tmp_path / "out") == dict.fromkeys(LINEARS, "W8A8_DYNAMIC")
    assert description(tmp_path / "out")["model_quant_type"] == "W8A8_DYNAMIC"
    source, out = tensor_file.read_folder(model), tensor_file.read_folder(tmp_path / "out")
    for name in LINEARS:
        w = source[name + ".weight"].data
        scale = np.abs(w).max(axis=1, keepdims=True).astype(float) / 127
        scale = tensor_file.round_to(scale, "BF16")
        np.testing.assert_array_equal(out[name + ".weight_scale"].data, scale)
        np.testing.assert_array_equal(out[name + ".weight"].data,
                                      np.clip(np.rint(w / scale), -127, 127))
        assert not out[name + ".weight_offset"].data.any()
    assert "W8A8_DYNAMIC" in run_tare("inspect", tmp_path / "out").stdout
    record = json.loads((tmp_path / "out" / "tare_run.json").read_text())
    assert record["scheme"] == "W8A8_DYNAMIC" and "calibration" not in record


def test_prompts_change_nothing_unless_something_needs_them(model, calib, tmp_path):
    quantize(model, tmp_path / "a", "--scheme", "w8a8_dynamic")
    done = quantize(model, tmp_path / "b", "--scheme", "w8a8_dynamic", "--calib", calib)
    assert "--calib is not read" in done.stderr
    assert output_files(tmp_path / "a") == output_files(tmp_path / "b")
    done = quantize(model, tmp_path / "c", "--scheme", "w8a8_dynamic", "--disable-level", "L2")
    assert "taken as L0" in done.stderr
    quantize(model, tmp_path / "d", "--scheme", "w8a8_dynamic", "--disable-level", "L2",
             "--calib", calib)
    assert list(types(tmp_path / "d").values()).count("FLOAT") >= 2


@pytest.mark.parametrize("flags,who", [
    ([], "W8A8 needs calibration samples"),
    (["--scheme", "w8a8_mix"], "W8A8 needs"),
    (["--scheme", "w8a8_dynamic", "--mix", "*.down_proj=w8a8"], "W8A8 needs"),
    (["--a-bit", "16", "--mix", "*.down_proj=w8a8"], "W8A8 needs"),
    (["--scheme", "w8a8_dynamic", "--anti-method", "m3"], "anti_outlier.anti_method needs"),
    (["--scheme", "w8a8_dynamic", "--fa-quant"], "fa_quant needs"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_what_needs_prompts_is_named(flags, who, model, tmp_path):
    done = run(model, tmp_path / "out", *flags)
    assert_refused(done, tmp_path / "out", who, "--calib builtin")


@pytest.mark.parametrize("flags", [
    ["--mix", "*=w8a8_dynamic"], ["--scheme", "w8a8_dynamic", "--mix", "*.mlp.*=w8a16"],
    ["--scheme", "w8a16", "--mix", "*.mlp.*=w8a8_dynamic,*.o_proj=float"],
    ["--mix", "*.mlp.*=w8a8_dynamic", "--disable-names", "*.self_attn.*"],
], ids=" ".join)
def test_without_static_linears_no_prompts(flags, model, calib, tmp_path):
    """Whatever the run's own scheme is: it is the linears that count. Byte for byte what --calib
    gives, in any number of threads."""
    quantize(model, tmp_path / "a", *flags, "--save", ALL, "--threads", 1)
    quantize(model, tmp_path / "b", *flags, "--save", ALL, "--threads", 3, "--calib", calib)
    assert output_files(tmp_path / "a") == output_files(tmp_path / "b")
    verify(tmp_path / "a", "--base", model)


def test_weights_alone_are_those_of_w8a16(model, tmp_path):
    """Section 3 of the W8A8 specification knows one formula for both."""
    quantize(model, tmp_path / "a", "--scheme", "w8a8_dynamic")
    quantize(model, tmp_path / "b", "--scheme", "w8a16")
    quantize(model, tmp_path / "c", "--a-bit", 16)
    weights = [tensor_file.read_folder(tmp_path / name) for name in "abc"]
    for other in weights[1:]:
        assert set(weights[0]) == set(other)
        for name, t in weights[0].items():
            np.testing.assert_array_equal(t.data, other[name].data, name)
    assert types(tmp_path / "b") == types(tmp_path / "c") == dict.fromkeys(LINEARS, "W8A16")


# ---- W8A8_MIX: W8A8's tensors under another name

@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Qwen2, whose q, k and v have biases."""
    return tiny.write_checkpoint(
        tmp_path_factory.mktemp("biased") / "model", {**tiny.make_tensors(), **{
            f"model.layers.{i}.self_attn.{name}_proj.bias": ("BF16", np.linspace(-1, 1, rows))
            for i in range(2) for name, rows in (("q", 32), ("k", 16), ("v", 16))}},
        model_type="qwen2", architectures=["Qwen2ForCausalLM"])


@pytest.mark.parametrize("save", ["ascendv1", "safe_tensor", "numpy"])
def test_mix_scheme_is_w8a8_but_for_its_name(save, biased, calib, tmp_path):
    """Section 3 of the specification of the schemes: only the type string differs; the bias lies
    beside quant_bias, which has it too."""
    for scheme in ("w8a8", "w8a8_mix"):
        quantize(biased, tmp_path / scheme, "--scheme", scheme, "--calib", calib, "--save", save,
                 "--no-disable-last-linear")
        verify(tmp_path / scheme, "--base", biased)
    static, mixed = output_files(tmp_path / "w8a8"), output_files(tmp_path / "w8a8_mix")
    json_of = {name.replace("w8a8_mix", "w8a8"): data.decode().replace("W8A8_MIX", "W8A8").replace(
        "w8a8_mix", "w8a8") for name, data in mixed.items() if name.endswith(".json")}
    assert set(static) == {name.replace("w8a8_mix", "w8a8") for name in mixed}
    for name, data in static.items():
        if name == "tare_run.json":
            assert json.loads(mixed[name])["scheme"] == "W8A8_MIX"
        elif name.endswith(".json"):
            assert json_of[name] == data.decode()
        else:
            assert mixed[name if name in mixed else name.replace("w8a8", "w8a8_mix")] == data
    if save == "ascendv1":
        kinds = description(tmp_path / "w8a8_mix")
        assert set(types(tmp_path / "w8a8_mix").values()) == {"W8A8_MIX"}
        assert kinds["model_quant_type"] == kinds["lm_head.weight"] == "W8A8_MIX"
        assert kinds["model.layers.0.self_attn.q_proj.bias"] == "FLOAT"
        assert "W8A8_MIX" in run_tare("inspect", tmp_path / "w8a8_mix").stdout
    elif save == "safe_tensor":
        assert "quant_model_weight_w8a8_mix.safetensors" in mixed
        assert json.loads(mixed["config.json"])["quantize"] == "w8a8_mix"


def test_mix_scheme_takes_what_would_be_w8a8(model, calib, tmp_path):
    quantize(model, tmp_path / "out", "--calib", calib, "--scheme", "w8a8_mix", "--mix",
             "*.0.self_attn.*=w8a8,*.down_proj=w8a8_dynamic,*.o_proj=w8a16,*.1.mlp.*=float")
    verify(tmp_path / "out", "--base", model)
    kinds = types(tmp_path / "out")
    assert {name: kind for name, kind in kinds.items() if kind != "W8A8_MIX"} == {
        "model.layers.0.mlp.down_proj": "W8A8_DYNAMIC",
        "model.layers.1.mlp.down_proj": "W8A8_DYNAMIC",
        "model.layers.1.self_attn.o_proj": "W8A16",
        "model.layers.1.mlp.gate_proj": "FLOAT", "model.layers.1.mlp.up_proj": "FLOAT"}


def test_compat_says_w8a8_outside_ascendv1(model, calib, tmp_path):
    """Section 10.4 of the specification of formats."""
    flags = ["--calib", calib, "--compat", "msmodelslim", "--scheme", "w8a8_mix", "--anti-method", "m1"]
    quantize(model, tmp_path / "out", *flags, "--save", "ascendv1,safe_tensor")
    quantize(model, tmp_path / "w8a8", *flags[:-4], "--anti-method", "m1", "--save", "safe_tensor")
    ascend, safe = tmp_path / "out/ascendv1", tmp_path / "out/safe_tensor"
    assert (ascend / "quant_model_weight_w8a8_mix.safetensors").exists()
    assert description(ascend)["model_quant_type"] == "W8A8_MIX"
    assert set(types(ascend).values()) == {"W8A8_MIX"}
    ours, plain = output_files(safe), output_files(tmp_path / "w8a8")
    assert set(ours) == set(plain)
    assert all(ours[name] == plain[name] for name in ours if name != "tare_run.json")
    verify(tmp_path / "out", "--compat", "msmodelslim", "--base", model)


@pytest.mark.parametrize("flags", [["--scheme", "w8a8_mix"], ["--mix", "*.mlp.*=w8a8_mix"]],
                         ids=" ".join)
def test_compressed_tensors_has_no_mix_scheme(flags, model, calib, tmp_path):
    done = run(model, tmp_path / "out", "--calib", calib, "--save", ALL, *flags)
    assert_refused(done, tmp_path / "out", "compressed-tensors has no w8a8_mix",
                   "ascendv1 or safe_tensor")


# ---- dynamic linears with what needs prompts

@pytest.mark.parametrize("method", ["m1", "m2", "m3", "m4", "m5", "m6"])
def test_smoothed_dynamic(method, model, calib, tmp_path):
    quantize(model, tmp_path / "out", "--scheme", "w8a8_dynamic", "--anti-method", method,
             "--calib", calib, "--save", "safe_tensor")
    verify(tmp_path / "out")
    assert set(types(tmp_path / "out").values()) == {"W8A8_DYNAMIC"}
    source, out = tensor_file.read_folder(model), tensor_file.read_folder(tmp_path / "out")
    norms = [t.data for name, t in out.items()
             if "layers.0.input_layernorm." in name and name.endswith("weight")]
    plain = source["model.layers.0.input_layernorm.weight"].data
    assert not all(np.array_equal(norm, plain) for norm in norms)


def test_head(model, calib, tmp_path):
    flags = ["--no-disable-last-linear"]
    quantize(model, tmp_path / "a", "--scheme", "w8a8_dynamic", *flags)
    quantize(model, tmp_path / "b", *flags, "--calib", calib, "--mix", "lm_head=w8a8_dynamic")
    for folder in "ab":
        verify(tmp_path / folder)
        kinds = description(tmp_path / folder)
        assert kinds["lm_head.weight"] == "W8A8_DYNAMIC"
        assert "lm_head.input_scale" not in kinds
    assert set(types(tmp_path / "b").values()) == {"W8A8"}


# ---- several types

@pytest.fixture(scope="module")
def three(model, calib, tmp_path_factory):
    out = tmp_path_factory.mktemp("three") / "out"
    quantize(model, out, "--calib", calib, "--mix", THREE, "--save", ALL)
    return out


def test_three_types(three, model):
    assert "no rule is broken" in verify(three, "--base", model)
    rules = [rule.split("=") for rule in THREE.split(",")]
    want = {name: next(kind.upper() for pattern, kind in rules if fnmatchcase(name, pattern))
            for name in LINEARS}
    assert types(three / "ascendv1") == types(three / "safe_tensor") == want
    # MindIE demands the dynamic type of static plus dynamic
    assert (three / "safe_tensor/quant_model_weight_w8a8_dynamic.safetensors").exists()
    assert json.loads((three / "safe_tensor/config.json").read_text())["quantize"] == "w8a8_dynamic"
    assert description(three / "ascendv1")["model_quant_type"] == "W8A8_DYNAMIC"


def test_save_types_hold_the_same(three):
    ascend = tensor_file.read_folder(three / "ascendv1")
    safe = tensor_file.read_folder(three / "safe_tensor")
    kinds = types(three / "ascendv1")
    for part in STATIC_PARTS:
        file = "quant_weight" if part == "weight" else part
        npy = np.load(three / f"safe_tensor/{file}.npy", allow_pickle=True).item()
        for name in LINEARS:
            assert (name in npy) == (part in PARTS[kinds[name]])
            if name in npy:
                np.testing.assert_array_equal(npy[name], safe[f"{name}.{part}"].data)
                np.testing.assert_array_equal(npy[name], ascend[f"{name}.{part}"].data)


def test_compressed_tensors_groups(three):
    config = json.loads((three / "compressed-tensors/config.json").read_text())
    groups = config["quantization_config"]["config_groups"].values()
    by_kind = {}
    for group in groups:
        acts = group["input_activations"]
        kind = "w8a16" if acts is None else "w8a8_dynamic" if acts["dynamic"] else "w8a8"
        by_kind[kind] = group
    assert set(by_kind) == {"w8a8", "w8a8_dynamic", "w8a16"}
    assert by_kind["w8a8_dynamic"]["input_activations"]["strategy"] == "token"
    assert by_kind["w8a8_dynamic"]["input_activations"]["symmetric"] is True


BY_RANK = ["W8A8_DYNAMIC", "W8A8_MIX", "W8A8", "W8A16", "FLOAT"]  # section 7.3
KINDS = [kind.lower() for kind in BY_RANK]
PAIRS = [(a, b) for i, a in enumerate(KINDS) for b in KINDS[i:]]


@pytest.mark.parametrize("present", PAIRS, ids=" ".join)
def test_name_of_each_pair(present, model, calib, tmp_path):
    """The first of the ranking, whichever of the two comes first in the model."""
    for order in {present, present[::-1]}:
        out = tmp_path / " ".join(order)
        quantize(model, out, "--calib", calib, "--mix",
                 f"*.self_attn.*={order[0]},*={order[1]}", "--save", "safe_tensor")
        want = present[0]
        assert description(out)["model_quant_type"] == want.upper()
        assert (out / f"quant_model_weight_{want}.safetensors").exists()
        assert json.loads((out / "config.json").read_text())["quantize"] == want
        verify(out)


@pytest.mark.parametrize("scheme", [kind for kind in KINDS if kind not in ("float", "w8a8_mix")])
@pytest.mark.parametrize("other", [kind for kind in KINDS if kind != "w8a8_mix"])
def test_compat_names_the_run_s_scheme(scheme, other, model, calib, tmp_path):
    quantize(model, tmp_path / "out", "--calib", calib, "--compat", "msmodelslim", "--scheme",
             scheme, "--mix", f"*.mlp.*={other}", "--save", "safe_tensor")
    assert description(tmp_path / "out")["model_quant_type"] == scheme.upper()


def test_compat_goes_by_the_run_s_own_scheme(model, calib, tmp_path):
    quantize(model, tmp_path / "a", "--calib", calib, "--compat", "msmodelslim", "--save",
             "safe_tensor", "--mix", "*.mlp.*=w8a8_dynamic")
    assert (tmp_path / "a/quant_model_description_w8a8.json").exists()
    done = quantize(model, tmp_path / "b", "--calib", calib, "--compat", "msmodelslim", "--save",
                    "safe_tensor", "--mix", "*.q_proj=w8a16,*.k_proj=float")
    assert "of different types" in done.stderr  # left as given


def test_record_is_a_recipe(model, calib, tmp_path):
    """What tare_run.json says of mix, given as a recipe, gives the same output."""
    quantize(model, tmp_path / "a", "--calib", calib, "--mix", "*.o_proj=float", "--mix", THREE)
    recipe = json.loads((tmp_path / "a/tare_run.json").read_text())["recipe"]
    assert recipe["mix"][0] == {"*.o_proj": "float"} and len(recipe["mix"]) == 4
    (tmp_path / "r.yaml").write_text(json.dumps({"mix": recipe["mix"]}))
    quantize(model, tmp_path / "b", "--calib", calib, "--recipe", tmp_path / "r.yaml")
    assert output_files(tmp_path / "a") == output_files(tmp_path / "b")
    # flags win over the file
    quantize(model, tmp_path / "c", "--recipe", tmp_path / "r.yaml", "--mix", "*=w8a8_dynamic")
    assert set(types(tmp_path / "c").values()) == {"W8A8_DYNAMIC"}


@pytest.mark.parametrize("flags,words", [
    (["--scheme", "w4a8"], ["quant.scheme", "possible: w8a8, w8a8_dynamic, w8a16"]),
    (["--mix", "*.k_proj=w8a8_dynamic,*.v_proj=float"], [
        "engines fuse model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj, "
        "model.layers.0.self_attn.v_proj,", "q_proj (w8a8, by the scheme of the run)",
        "k_proj (w8a8_dynamic, by *.k_proj)"]),
    (["--mix", "*.up_proj=w8a16"], ["mlp.gate_proj (w8a8, by the scheme of the run)",
                                    "mlp.up_proj (w8a16, by *.up_proj)"]),
    (["--mix", "*.upproj=w8a16"], ["\"*.upproj\" names no linear", "near: "]),
    (["--mix", "*.up_proj=w8a8_mix"], ["mlp.gate_proj (w8a8, by the scheme of the run)",
                                       "mlp.up_proj (w8a8_mix, by *.up_proj)"]),
    (["--scheme", "w8a8_mix", "--a-bit", "16"], ["contradicts quant.scheme w8a8_mix"]),
    (["--scheme", "w8a8_mix", "--no-w-sym"], ["symmetric"]),
    (["--mix", "*.mlp.*=int8"], ["\"int8\" is no type"]),
    (["--mix", "*.mlp.*"], ["is not PATTERN=TYPE"]),
    (["--scheme", "w8a8_dynamic", "--mm-tensor"], ["mm_tensor", "a scale for each row"]),
    (["--scheme", "w8a8_dynamic", "--no-w-sym"], ["symmetric"]),
    (["--scheme", "w8a8", "--a-bit", "16"], ["contradicts"]),
    (["--scheme", "w8a16", "--anti-method", "m3"], ["anti_outlier.anti_method", "weights alone"]),
], ids=lambda x: " ".join(x) if x[0].startswith("--") else "")
def test_refused(flags, words, model, calib, tmp_path):
    assert_refused(run(model, tmp_path / "out", "--calib", calib, *flags), tmp_path / "out", *words)


def test_dry_run(model, calib):
    for flags in (["--scheme", "w8a8_dynamic"], ["--mix", THREE, "--calib", calib]):
        done = run_tare("quantize", model, "--dry-run", "--no-probe", *flags)
        assert done.returncode == 0, done.stderr

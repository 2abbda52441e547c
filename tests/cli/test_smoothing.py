"""Outlier suppression and FA seen from outside: odd weights, odd settings, who is smoothed, and
that the bytes depend on neither threads nor batches. (Numbers: tests/unit/test_smooth*.c and
tests/golden/.)"""
import numpy as np
import pytest
import tensor_file
import tiny
from conftest import output_files, run_tare

METHODS = ("m1", "m2", "m3", "m4", "m5", "m6")
INPUT_NORM = "model.layers.{}.input_layernorm.weight"
POST_NORM = "model.layers.{}.post_attention_layernorm.weight"
FLOAT = ["--disable-names", "*", "--save", "safe_tensor"]  # writes the smoothed model


@pytest.fixture
def model(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model")


@pytest.fixture
def calib(tmp_path):
    return tiny.write_prompts(tmp_path / "prompts.jsonl")


def write_weights(folder, tensors):
    tensor_file.write(folder / "model.safetensors", tensors)


def write_fp32(folder, tensors):
    """For values that rounding to BF16 would not survive."""
    write_weights(folder, {name: ("F32", x) for name, (_, x) in tensors.items()})


def quantize(model, calib, out, *flags):
    return run_tare("quantize", model, "--out", out, "--calib", calib, *flags)


def quantized(model, calib, out, *flags):
    done = quantize(model, calib, out, *flags)
    assert done.returncode == 0, done.stderr
    return done


def assert_refused(done, status, out, *words):
    assert done.returncode == status, done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in sentence
    assert not out.exists()


# ---- What is not finite stops, by name, and nothing is written

NOT_FINITE = {
    "NaN in a target": ("model.layers.1.mlp.up_proj.weight", np.nan),
    "infinity in a target": ("model.layers.0.self_attn.k_proj.weight", np.inf),
    "NaN in a norm": (INPUT_NORM.format(1), np.nan),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", NOT_FINITE)
def test_weight_is_not_finite(case, method, model, calib, tmp_path):
    name, value = NOT_FINITE[case]
    tensors = tiny.make_tensors()
    tensors[name][1].flat[5] = value
    write_fp32(model, tensors)
    out = tmp_path / "out"
    assert_refused(quantize(model, calib, out, "--anti-method", method), 1, out, name)


@pytest.mark.parametrize("method", METHODS)
def test_statistic_is_not_finite(method, model, calib, tmp_path):
    """Every weight is finite; what the norm of the second layer gives to gate and up is not."""
    tensors = tiny.make_tensors()
    tensors[POST_NORM.format(1)][1][:] = 3e38
    write_weights(model, tensors)
    out = tmp_path / "out"
    assert_refused(quantize(model, calib, out, "--anti-method", method), 1, out,
                   POST_NORM.format(1), "model.layers.1.mlp.gate_proj", "32 channels", "sample 0")


# ---- Dead channels, zero columns and zero rows are handled, and named in one warning a layer

def warnings(done):
    return [line for line in done.stderr.splitlines() if "smoothing met" in line]


@pytest.mark.parametrize("method", METHODS)
def test_zeros(method, model, calib, tmp_path):
    tensors = tiny.make_tensors()
    tensors[INPUT_NORM.format(1)][1][[3, 9]] = 0  # two dead channels
    for part in "qkv":
        tensors[f"model.layers.1.self_attn.{part}_proj.weight"][1][:, 7] = 0  # a zero column
    tensors["model.layers.1.mlp.gate_proj.weight"][1][[2, 5, 6]] = 0  # three zero rows
    write_weights(model, tensors)
    out = tmp_path / "out"
    line, = warnings(quantized(model, calib, out, "--anti-method", method, *FLOAT))
    assert INPUT_NORM.format(1) + ": 2 dead channels, 1 all-zero weight columns" in line
    assert POST_NORM.format(1) + ": 3 all-zero weight rows" in line
    assert "layers.0" not in line
    smoothed = tensor_file.read_folder(out)
    assert all(np.isfinite(t.data).all() for t in smoothed.values())
    norm = smoothed[INPUT_NORM.format(1)].data
    assert (norm[[3, 9]] == 0).all()
    if method not in ("m2", "m3"):  # s = 1; those two have formulas for such channels
        source = tensor_file.read(model / "model.safetensors")
        name = "model.layers.1.self_attn.q_proj.weight"
        np.testing.assert_array_equal(smoothed[name].data[:, [3, 9]],
                                      source[name].data[:, [3, 9]])
    quantized(model, calib, tmp_path / "w8a8", "--anti-method", method)


def test_no_warning_without_zeros(model, calib, tmp_path):
    assert warnings(quantized(model, calib, tmp_path / "out", "--anti-method", "m1")) == []


# ---- disable_anti_names

def changed(model, out):
    """Names of norms and linears that differ from the checkpoint."""
    source, smoothed = tensor_file.read_folder(model), tensor_file.read_folder(out)
    return {name for name, t in source.items() if not (smoothed[name].data == t.data).all()}


GROUPS = {  # a target: what changes by its group alone; what another group of m4 and m6 changes too
    "self_attn.k_proj": (["input_layernorm", "self_attn.q_proj", "self_attn.k_proj"],
                         ["self_attn.v_proj"]),
    "mlp.up_proj": (["post_attention_layernorm", "mlp.gate_proj"], ["mlp.up_proj"]),
    "mlp.down_proj": (["mlp.down_proj"], []),
    "self_attn.o_proj": (["self_attn.o_proj"], []),
}


@pytest.mark.parametrize("target", GROUPS)
@pytest.mark.parametrize("method", METHODS)
def test_disabled_group(method, target, model, calib, tmp_path):
    tensors = tiny.make_tensors()
    for name in (INPUT_NORM, POST_NORM):  # outliers, so that no method leaves a norm alone
        tensors[name.format(1)][1][4] = 30
    write_weights(model, tensors)
    flags = ["--anti-method", method, *FLOAT]
    if method == "m6":
        flags += ["--alpha", "0.5", "--beta", "0.5"]
    quantized(model, calib, tmp_path / "all", *flags)
    quantized(model, calib, tmp_path / "some", *flags, "--disable-anti-names",
              f"model.layers.1.{target}")
    alone, shared = GROUPS[target]
    every = changed(model, tmp_path / "all")
    gone = {f"model.layers.1.{part}.weight"
            for part in alone + (shared if method not in ("m4", "m6") else [])}
    assert changed(model, tmp_path / "some") == every - gone
    norms_alone = target in ("mlp.down_proj", "self_attn.o_proj")
    assert (every & gone == gone) if method in ("m4", "m6") or not norms_alone else not every & gone


@pytest.mark.parametrize("method", METHODS)
def test_compat_disables_as_the_reference(method, model, calib, tmp_path):
    """Its m1, m2 and m5 ignore the names (specification, section 2)."""
    tensors = tiny.make_tensors()
    tensors[INPUT_NORM.format(1)][1][4] = 30
    write_weights(model, tensors)
    flags = ["--anti-method", method, "--compat", "msmodelslim", "--disable-level", "L99",
             "--save", "safe_tensor"]
    quantized(model, calib, tmp_path / "all", *flags)
    quantized(model, calib, tmp_path / "some", *flags, "--disable-anti-names",
              "model.layers.1.self_attn.q_proj")
    same = changed(model, tmp_path / "some") == changed(model, tmp_path / "all")
    assert same == (method in ("m1", "m2", "m5"))


# ---- Settings

RECIPES = {
    "method": ("anti_outlier: {anti_method: m7}", ["anti_method", "m7", "m1", "m6"]),
    "a_bit 16 without m3": ("anti_outlier: {anti_method: m1, a_bit: 16}",
                            ["a_bit", "16", "8", "m3"]),
    "a_bit 4": ("anti_outlier: {anti_method: m3, a_bit: 4}", ["a_bit", "4", "8"]),
    "a_bit 12": ("anti_outlier: {anti_method: m3, a_bit: 12}", ["a_bit", "12", "8", "16"]),
    "w_bit": ("anti_outlier: {anti_method: m3, w_bit: 6}", ["w_bit", "6", "4", "8"]),
    "w_bit is a bool": ("anti_outlier: {anti_method: m3, w_bit: true}", ["w_bit"]),
    "w_sym without m3": ("anti_outlier: {anti_method: m1, w_sym: false}", ["w_sym", "m3"]),
    "alpha": ("anti_outlier: {anti_method: m6, alpha: much}", ["alpha", "much"]),
    "key": ("anti_outlier: {anti_method: m6, gamma: 1}", ["gamma"]),
    "no method": ("anti_outlier: {alpha: 0.5}", ["anti_method", "m1", "m6"]),
    "name": ("anti_outlier: {anti_method: m4, disable_anti_names: [model.layers.1.mlp.donw_proj]}",
             ["disable_anti_names", "donw_proj", "model.layers.1.mlp.down_proj"]),
    "one name of two": ("anti_outlier: {anti_method: m1, disable_anti_names: "
                        "[model.layers.1.mlp.up_proj, model.layers.2.mlp.up_proj]}",
                        ["disable_anti_names", "model.layers.2.mlp.up_proj"]),
    "fa_amp negative": ("fa_quant: {fa_amp: -1}", ["fa_amp", "-1", "0"]),
    "fa_amp float": ("fa_quant: {fa_amp: 1.5}", ["fa_amp", "int"]),
    "fa_amp text": ("fa_quant: {fa_amp: two}", ["fa_amp", "int"]),
    "fa_amp bool": ("fa_quant: {fa_amp: true}", ["fa_amp", "int"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_refused_recipe(name, model, calib, tmp_path):
    text, words = RECIPES[name]
    (tmp_path / "r.yaml").write_text(text + "\n")
    out = tmp_path / "out"
    assert_refused(quantize(model, calib, out, "--recipe", tmp_path / "r.yaml"), 2, out, *words)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_is_needed(method, model, tmp_path):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--anti-method", method)
    assert_refused(done, 2, tmp_path / "out", "--calib")


def test_m3_takes_16_bit_activations(model, calib, tmp_path):
    """a_bit is not used (specification 1.5)."""
    outs = {}
    for bits in (8, 16):
        (tmp_path / "r.yaml").write_text(f"anti_outlier: {{anti_method: m3, a_bit: {bits}}}\n")
        quantized(model, calib, tmp_path / str(bits), "--recipe", tmp_path / "r.yaml")
        outs[bits] = output_files(tmp_path / str(bits), record=False)
    assert outs[8] == outs[16]


def test_strengths_that_call_for_a_warning(model, calib, tmp_path):
    done = quantized(model, calib, tmp_path / "a", "--anti-method", "m6", "--alpha", "0.5")
    assert "only one is given" in done.stderr
    done = quantized(model, calib, tmp_path / "b", "--anti-method", "m6", "--alpha", "0.5",
                     "--beta", "1.25")
    assert "beta is 1.25; values from 0 to 1" in done.stderr and "only one" not in done.stderr
    done = quantized(model, calib, tmp_path / "c", "--anti-method", "m1", "--beta", "0.5")
    assert "beta is for m6" in done.stderr


def test_fa_amp_beyond_the_layers(model, calib, tmp_path):
    """Two layers: 3 means both, with a warning; 2 says the same without."""
    done = quantized(model, calib, tmp_path / "three", "--fa-quant", "--fa-amp", "3")
    assert "`fa_amp` exceeds the total attention layer number" in done.stderr
    done = quantized(model, calib, tmp_path / "two", "--fa-quant", "--fa-amp", "2")
    assert "exceeds" not in done.stderr
    three, two = (tensor_file.read_folder(tmp_path / name) for name in ("three", "two"))
    assert not any(".fa_q." in name for name in three)
    assert {n: t.data.tobytes() for n, t in three.items()} == {n: t.data.tobytes()
                                                              for n, t in two.items()}


# ---- The same bytes

FLAGS = {
    "default": [],
    "histogram and scores": ["--act-method", "3", "--disable-level", "L2"],
    "mixed": ["--pr", "0.5"],
    "FA": ["--fa-quant", "--fa-amp", "1", "--anti-method", "m3"],
    "compat": ["--compat", "msmodelslim", "--dtype", "float16", "--anti-method", "m1"],
    **{method: ["--anti-method", method, "--act-method", "3"] for method in METHODS},
}


@pytest.mark.parametrize("name", FLAGS)
def test_batches_and_threads_change_nothing(name, model, calib, tmp_path):
    """Samples one by one, in pairs or so, and all together."""
    outs = []
    for threads, rows in ((1, 1), (2, 40), (3, 100000), (2, None)):
        out = tmp_path / f"{threads}-{rows}"
        batch = ["--batch-rows", rows] if rows else []
        quantized(model, calib, out, "--threads", threads, *batch, *FLAGS[name])
        outs.append(output_files(out))
    assert all(out == outs[0] for out in outs)


def test_batch_rows_is_a_number(model, calib, tmp_path):
    for value in ("0", "-1", "many", "1.5", "99999999999999999999999"):
        done = quantize(model, calib, tmp_path / "out", "--batch-rows", value)
        assert_refused(done, 2, tmp_path / "out", "--batch-rows")

"""`tare retype`: an output with other schemes, from the statistics that its run left. What it must
write is what `tare quantize` writes with those settings, byte for byte, wherever the stream of
activations is the same; where it is not, it says so."""
import json

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import output_files, run_tare

STATISTICS = "tare/tare_stats.safetensors"
ALL = "ascendv1,safe_tensor,numpy,compressed-tensors"
ASCEND = "ascendv1,safe_tensor,numpy"
QWEN2 = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"])
HARD = ["--anti-method", "m3", "--act-method", "3", "--disable-level", "L2", "--fa-quant"]


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """Biases on q, k and v, which smoothing changes."""
    return write_qwen2(tmp_path_factory.mktemp("qwen2") / "model")


def write_qwen2(folder):
    shapes = {f"model.layers.{i}.self_attn.{n}_proj.bias": (size,)
              for i in range(2) for n, size in (("q", 32), ("k", 16), ("v", 16))}
    rng = np.random.default_rng(5)
    biases = {name: ("BF16", rng.normal(0, 0.5, shape).astype(np.float32))
              for name, shape in shapes.items()}
    return tiny.write_checkpoint(folder, tensors={**tiny.make_tensors(), **biases}, **QWEN2)


def call(*arguments, **kwargs):
    done = run_tare(*arguments, **kwargs)
    assert done.returncode == 0, done.stderr
    return done


def quantize(model, calib, out, *flags):
    return call("quantize", model, "--out", out, "--calib", calib, *flags)


def retype(source, model, out, *flags):
    return call("retype", source, "--base", model, "--out", out, *flags)


def assert_same_files(a, b):
    a, b = output_files(a, record=False), output_files(b, record=False)
    assert set(a) == set(b)
    assert [name for name in a if a[name] != b[name]] == []


def record(folder):
    return json.loads((folder / "tare_run.json").read_text())


def check(model, calib, tmp_path, first, second, change):
    """The output of `first`, retyped by `change`, is that of `second`."""
    quantize(model, calib, tmp_path / "first", *first)
    done = retype(tmp_path / "first", model, tmp_path / "retyped", *change)
    assert "schemes" not in done.stderr
    # A run whose weights are all that counts takes no samples.
    quantize(model, calib, tmp_path / "second", *second)
    assert_same_files(tmp_path / "retyped", tmp_path / "second")
    assert (tmp_path / "retyped" / STATISTICS).read_bytes() == \
        (tmp_path / "first" / STATISTICS).read_bytes()
    assert "from_another_stream\": []" in next((tmp_path / "retyped").rglob("tare_run.json")).read_text()


# ---- to the same schemes

@pytest.mark.parametrize("flags", [
    ["--save", ALL], ["--act-method", "2", "--mm-tensor"], ["--act-method", "4"], ["--dtype", "float16", *HARD],
    [*HARD, "--save", ASCEND, "--no-disable-last-linear"],
    ["--scheme", "w8a8_mix", "--act-method", "2"], ["--kv-cache", "c8", "--anti-method", "m6"],
    ["--fa-quant", "--fa-amp", "1"],
    ["--fa-quant", "--fa-v-method", "mse", "--act-method", "4"], ["--pr", "0.5", "--seed", "3"],
    ["--mix", "*.down_proj=w8a8_dynamic,*.o_proj=float,*.0.*.gate_proj=w8a16,*.0.*.up_proj=w8a16"],
    ["--compat", "msmodelslim", *HARD, "--save", "safe_tensor,numpy"],
    ["--compat", "msmodelslim", "--dtype", "float16", "--act-method", "2"],
    ["--compat", "msmodelslim", "--kv-cache", "c8", "--anti-method", "m4", "--save", "safe_tensor"],
    *(["--anti-method", m, "--save", "safe_tensor"] for m in ("m1", "m2", "m4", "m5", "m6")),
], ids=" ".join)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_same_again(family, flags, model, qwen2, calib, tmp_path):
    check(qwen2 if family == "qwen2" else model, calib, tmp_path, flags, flags, [])


# ---- to others, whose bytes are defined

STATIC = ["--anti-method", "m6", "--act-method", "3", "--save", "safe_tensor"]


@pytest.mark.parametrize("first,change", [
    ([], ["--scheme", "w8a8_dynamic", "--save", ALL]),
    (STATIC, ["--scheme", "w8a8_dynamic"]), (STATIC, ["--scheme", "w8a8_mix"]),
    (STATIC, ["--scheme", "w8a8_dynamic", "--mix", "*.down_proj=float"]),
    ([*STATIC, "--scheme", "w8a8_dynamic"], ["--mix", "*.o_proj=w8a16,*.0.mlp.down_proj=float"]),
    (STATIC, ["--no-disable-last-linear"]), (STATIC, ["--disable-names", "model.layers.1.mlp.*"]),
    (STATIC, ["--mix", "model.layers.1.mlp.down_proj=w8a16"]),
    (STATIC, ["--kv-cache", "c8"]), ([*STATIC, "--kv-cache", "c8"], ["--no-kv-sym"]),
    ([*STATIC, "--kv-cache", "c8"], ["--kv-cache", "none"]),
    ([*STATIC, "--fa-quant"], ["--fa-amp", "1"]), ([*STATIC, "--fa-quant"], ["--no-fa-quant"]),
    (["--act-sym"], ["--save", "compressed-tensors"]),
    (["--scheme", "w8a8_mix"], ["--scheme", "w8a8", "--save", "numpy"]),
    (["--act-method", "3", "--scheme", "w8a8_dynamic", "--anti-method", "m1"],
     ["--disable-level", "L3"]),
], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_quantize_would_write(family, first, change, model, qwen2, calib, tmp_path):
    second = [*first, *change]
    if "--no-fa-quant" in change:
        second = first[:-1]
    if change == ["--kv-cache", "none"]:
        second = first[:-2]
    if change == ["--disable-level", "L3"]:
        # Linears without activations of their own are ranked only where something is static.
        second = [*first, "--disable-level", "L3"]
        first = second[:-1] + ["L1"]
    check(qwen2 if family == "qwen2" else model, calib, tmp_path, first, second, change)


@pytest.mark.parametrize("scheme,kind", [("w8a16", "W8A16"), ("w8a8_dynamic", "W8A8_DYNAMIC")])
def test_weights_alone(scheme, kind, model, calib, tmp_path):
    """From a static output, and from one whose run left no statistics."""
    quantize(model, calib, tmp_path / "static", "--anti-method", "m3")
    call("quantize", model, "--out", tmp_path / "alone", "--scheme", "w8a16", "--no-w-sym",
         "--save", "safe_tensor")
    assert not (tmp_path / "alone" / STATISTICS).exists()
    retype(tmp_path / "static", model, tmp_path / "a", "--scheme", scheme, "--anti-method", "none")
    retype(tmp_path / "alone", model, tmp_path / "b", "--scheme", scheme, "--w-sym",
           "--save", "ascendv1")
    call("quantize", model, "--out", tmp_path / "c", "--scheme", scheme)
    assert_same_files(tmp_path / "a", tmp_path / "c")
    assert_same_files(tmp_path / "b", tmp_path / "c")
    types = json.loads((tmp_path / "c" / "quant_model_description.json").read_text())
    assert types["model.layers.0.mlp.up_proj.weight"] == kind


def test_a_retyped_output_can_be_retyped(model, calib, tmp_path):
    """And comes back to what it was, as its statistics are those of the first run."""
    quantize(model, calib, tmp_path / "a", *HARD)
    retype(tmp_path / "a", model, tmp_path / "b", "--scheme", "w8a8_dynamic", "--no-fa-quant")
    retype(tmp_path / "b", model, tmp_path / "c", "--scheme", "w8a8", "--fa-quant")
    assert_same_files(tmp_path / "c", tmp_path / "a")


# ---- to others, whose ranges would be others

def test_another_stream(model, calib, tmp_path):
    """A linear that becomes float changes what all behind it see: those are named. Its own input
    and what lies in front are as they were."""
    quantize(model, calib, tmp_path / "a")
    change = ["--disable-names", "model.layers.0.self_attn.o_proj"]
    done = retype(tmp_path / "a", model, tmp_path / "b", *change)
    behind = ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj",
              "model.layers.0.mlp.down_proj",
              *(f"model.layers.1.{n}_proj" for n in ("self_attn.q", "self_attn.k", "self_attn.v",
                                                     "self_attn.o", "mlp.gate", "mlp.up",
                                                     "mlp.down"))]
    assert record(tmp_path / "b")["statistics"]["from_another_stream"] == behind
    assert "10 static linears and attentions, model.layers.0.mlp.gate_proj the first" in done.stderr
    quantize(model, calib, tmp_path / "fresh", *change)
    a, b, fresh = (tensor_file.read_folder(tmp_path / name) for name in ("a", "b", "fresh"))
    assert set(b) == set(fresh)
    for name, tensor in b.items():
        module = name.rpartition(".")[0]
        of = fresh if module not in behind else a
        np.testing.assert_array_equal(tensor.data, of[name].data, err_msg=name)


@pytest.mark.parametrize("change,first", [
    (["--act-method", "2"], "model.layers.0.self_attn.o_proj"),
    (["--act-sym"], "model.layers.0.self_attn.o_proj"),
    (["--mm-tensor"], "model.layers.0.self_attn.o_proj"),
    (["--mix", "*.q_proj=w8a8_dynamic,*.k_proj=w8a8_dynamic,*.v_proj=w8a8_dynamic",
      "--kv-cache", "c8"], "model.layers.0.self_attn")], ids=str)
def test_settings_that_change_the_stream(change, first, model, calib, tmp_path):
    quantize(model, calib, tmp_path / "a")
    retype(tmp_path / "a", model, tmp_path / "b", *change)
    assert record(tmp_path / "b")["statistics"]["from_another_stream"][0] == first
    assert run_tare("verify", tmp_path / "b", "--base", model).returncode == 0


# ---- the statistics by themselves

def test_statistics_by_hand(model, tmp_path):
    """The first layer's input by numpy: normed embeddings of the prompts."""
    samples = np.random.default_rng(7).integers(0, 256, (5, 30)).tolist()
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(samples))
    quantize(model, ids, tmp_path / "out", "--act-method", "2")
    s = tensor_file.read(tmp_path / "out" / STATISTICS)
    source = tensor_file.read_folder(model)
    x = [source["model.embed_tokens.weight"].data[ids].astype(np.float64) for ids in samples]
    norm = source["model.layers.0.input_layernorm.weight"].data.astype(np.float64)
    x = [rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5) * norm for rows in x]
    q = "model.layers.0.self_attn.q_proj.input_"
    rows = np.concatenate(x)
    extremes, mean, histogram = s[q + "range"].data
    np.testing.assert_allclose(extremes, [rows.min(), rows.max()], rtol=1e-6)
    np.testing.assert_allclose(mean, [np.mean([r.min() for r in x]), np.mean([r.max() for r in x])],
                               rtol=1e-6)
    assert extremes[0] <= histogram[0] < 0 < histogram[1] <= extremes[1]
    np.testing.assert_allclose(s[q + "max"].data, np.abs(rows).max(axis=0), rtol=2.0**-8)
    for i, (low, high) in enumerate((mean, histogram)):
        scale = float(tensor_file.round_to([(high - low) / 255], "BF16")[0])
        assert s[q + "scale"].data[i] == scale
        assert s[q + "offset"].data[i] == np.rint(-low / scale) - 128
    out = tensor_file.read_folder(tmp_path / "out")
    assert out["model.layers.0.self_attn.q_proj.input_scale"].data == s[q + "scale"].data[1]
    check_mse_range(s[q + "range_mse"].data, rows)


def asymmetric(low, high):
    low, high = min(low, 0), max(high, 0)
    scale = float(tensor_file.round_to([(high - low) / 255], "BF16")[0])
    return scale, np.clip(np.rint(-low / scale) - 128, -128, 127)


def squared_error(x, low, high):
    scale, offset = asymmetric(low, high)
    return (((np.clip(np.rint(x / scale + offset), -128, 127) - offset) * scale - x) ** 2).sum()


def check_mse_range(found, x):
    """act_method 4: fractions of the extremes, each end in turn, twice; over the values themselves."""
    fractions = [1 - 0.05 * i for i in range(15)]
    ends = [x.min(), x.max()]
    at = list(ends)
    for turn in range(4):
        end = turn % 2
        tried = [[f * ends[0], at[1]] if end == 0 else [at[0], f * ends[1]] for f in fractions]
        at = min(tried, key=lambda r: squared_error(x, *r))
    assert 0.299 <= found[0] / ends[0] <= 1.00001 and 0.299 <= found[1] / ends[1] <= 1.00001
    assert squared_error(x, *found) <= 1.005 * squared_error(x, *at)
    assert squared_error(x, *found) <= squared_error(x, *ends)


def test_act_method_4(model, calib, tmp_path):
    """Norms' outputs by the squared error, others by the mean of extremes; and from the statistics
    of a run with another method, where the stream is the same."""
    quantize(model, calib, tmp_path / "one", "--act-method", "1")
    quantize(model, calib, tmp_path / "four", "--act-method", "4")
    retype(tmp_path / "one", model, tmp_path / "retyped", "--act-method", "4")
    s = tensor_file.read(tmp_path / "four" / STATISTICS)
    out, retyped = (tensor_file.read_folder(tmp_path / name) for name in ("four", "retyped"))
    for name, by in (("self_attn.q_proj", "range_mse"), ("self_attn.k_proj", None),
                     ("self_attn.o_proj", "range"), ("mlp.gate_proj", "range_mse"),
                     ("mlp.down_proj", "range")):
        scale = out[f"model.layers.1.{name}.input_scale"].data
        if by is None:
            name, by = "self_attn.q_proj", "range_mse"
        low, high = s[f"model.layers.1.{name}.input_{by}"].data[... if by == "range_mse" else 1]
        assert scale == asymmetric(low, high)[0]
    first = "model.layers.0.self_attn.q_proj.input_scale"
    assert retyped[first].data == out[first].data


def test_statistics_without_it(model, calib, tmp_path):
    """Compat leaves no ranges of act_method 4, and may not have it."""
    compat = ["--compat", "msmodelslim", "--save", "safe_tensor"]
    quantize(model, calib, tmp_path / "out", *compat)
    names = tensor_file.read(tmp_path / "out" / STATISTICS)
    assert not [name for name in names if name.endswith("range_mse")]
    assert "act_method" in refuse(tmp_path / "out", "--base", model, "--out", tmp_path / "b",
                                  "--act-method", "4")


def test_they_stay_out_of_the_way_of_engines(model, calib, tmp_path):
    """Engines read every *.safetensors that lies beside the weights."""
    quantize(model, calib, tmp_path / "one")
    quantize(model, calib, tmp_path / "more", "--save", ALL)
    assert [p.name for p in (tmp_path / "one").glob("*.safetensors")] == \
        ["quant_model_weights-00001-of-00001.safetensors"]
    assert (tmp_path / "more" / STATISTICS).exists()
    assert not (tmp_path / "more" / "ascendv1" / "tare").exists()
    retype(tmp_path / "more", model, tmp_path / "again")
    assert_same_files(tmp_path / "again", tmp_path / "more")
    # A new output without statistics takes the old ones away.
    call("quantize", model, "--out", tmp_path / "one", "--overwrite", "--scheme", "w8a16")
    assert not (tmp_path / "one" / "tare").exists()


# ---- refusals

def refuse(*arguments, code=2):
    done = run_tare("retype", *arguments)
    assert done.returncode == code, (done.returncode, done.stderr)
    return done.stderr


def test_refusals(model, calib, tmp_path):
    out = tmp_path / "out"
    quantize(model, calib, tmp_path / "a", "--anti-method", "m3")
    base = ["--base", model, "--out", out]
    assert "--base MODEL is missing" in refuse(tmp_path / "a", "--out", out)
    assert "--out DIR2 is missing" in refuse(tmp_path / "a", "--base", model)
    assert "no output of tare" in refuse(model, *base)
    assert "unknown option --calib" in refuse(tmp_path / "a", *base, "--calib", calib)
    assert "fa_q_scale: the run" in refuse(tmp_path / "a", *base, "--fa-quant", code=1)
    assert "no score of model.layers.0.self_attn.q_proj" in refuse(tmp_path / "a", *base,
                                                                    "--act-method", "3")
    assert "fa_q_scale: the run" in refuse(tmp_path / "a", *base, "--fa-quant", "--fa-v-method", "mse",
                                           code=1)
    quantize(model, calib, tmp_path / "fa", "--fa-quant")
    assert "fa_quant.v_method: the statistics" in refuse(tmp_path / "fa", *base, "--fa-v-method", "mse")
    for method in ("m6", "none"):
        assert "anti_outlier.anti_method: the statistics" in refuse(tmp_path / "a", *base,
                                                                    "--anti-method", method)
    other = tmp_path / "other.yaml"
    other.write_text("run: {dtype: float16}\n")
    assert "run.dtype" in refuse(tmp_path / "a", *base, "--recipe", other)
    call("quantize", model, "--out", tmp_path / "alone", "--scheme", "w8a16")
    assert "needs samples" in refuse(tmp_path / "alone", *base, "--scheme", "w8a8")
    assert "gptq needs calibration samples" in refuse(tmp_path / "a", *base, "--weight-method", "gptq")
    quantize(model, calib, tmp_path / "gptq", "--weight-method", "gptq")
    call("retype", tmp_path / "gptq", "--base", model, "--out", tmp_path / "w8a16", "--scheme", "w8a16",
         "--weight-method", "ssz")
    assert "come from gptq" in refuse(tmp_path / "gptq", *base, "--weight-method", "minmax")
    assert not out.exists()


def test_another_model(model, calib, tmp_path):
    quantize(model, calib, tmp_path / "a")
    wide = dict(intermediate_size=80)
    other = tiny.write_checkpoint(tmp_path / "other", tiny.make_tensors({**tiny.CONFIG, **wide}), **wide)
    assert "another model" in refuse(tmp_path / "a", "--base", other, "--out", tmp_path / "b", code=1)


@pytest.mark.parametrize("damage", ["cut", "record", "shape", "range", "lacking", "zeros"])
def test_damaged_statistics(damage, model, calib, tmp_path):
    quantize(model, calib, tmp_path / "a", "--anti-method", "m6", "--disable-names", "*.v_proj",
             "--disable-names", "*.[qk]_proj")
    path = tmp_path / "a" / STATISTICS
    name = "model.layers.1.mlp.down_proj.input_range"
    tensors = {n: (t.tag, t.data) for n, t in tensor_file.read(path).items()}
    if damage == "record":
        tensors["tare_run"] = ("U8", np.frombuffer(b"{]", np.uint8))
    if damage == "shape":
        tensors[name] = ("F64", np.zeros((2, 2)))
    if damage == "range":
        tensors[name] = ("F64", np.full((3, 2), np.nan))
    if damage == "lacking":
        del tensors[name]
    if damage == "zeros": # divisors of a float linear's rows
        name = "model.layers.1.self_attn.v_proj.smooth_rows"
        tensors[name] = ("F32", np.zeros_like(tensors[name][1]))
    tensor_file.write(path, tensors)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    message = refuse(tmp_path / "a", "--base", model, "--out", tmp_path / "b", code=1)
    if damage == "zeros":
        assert "model.layers.1.self_attn.v_proj: the smoothed weight does not fit BF16" in message
    else:
        assert "tare_stats.safetensors" in message
    if damage in ("shape", "range", "lacking"):
        assert "model.layers.1.mlp.down_proj" in message
    assert not (tmp_path / "b").exists()

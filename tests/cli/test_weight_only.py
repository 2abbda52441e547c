"""`tare quantize --a-bit 16`: weights alone, without prompts."""
import json

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import output_files, run_tare

LINEARS = [f"model.layers.{i}.{name}_proj" for i in range(2) for name in (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")]
SHARD = "quant_model_weights-00001-of-00001.safetensors"
TENSORS = tiny.make_tensors()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


def run(model, out, *flags):
    return run_tare("quantize", model, "--out", out, "--a-bit", 16, *flags)


def quantize(model, out, *flags):
    done = run(model, out, *flags)
    assert done.returncode == 0, done.stderr
    return done


def description(out):
    return json.loads((out / "quant_model_description.json").read_text())


def assert_refused(done, out, *words):
    assert done.returncode == 2, (done.returncode, done.stderr)
    for word in words:
        assert word in done.stderr
    assert not out.exists() or not list(out.iterdir())


# ---- Numbers, by section 3 of the W8A8 specification in numpy

def symmetric(w, tag, axis):
    """axis 1: a scale for each row; None: one."""
    a = np.abs(w.astype(float)).max(axis, keepdims=True)
    scale = tensor_file.round_to(np.maximum(a / 127, 2.0**-23), tag)
    return scale, np.zeros_like(scale), np.clip(np.rint(w / scale), -127, 127)


def asymmetric(w, tag, axis):
    low = np.minimum(w.astype(float).min(axis, keepdims=True), 0)
    high = np.maximum(w.astype(float).max(axis, keepdims=True), 0)
    scale = tensor_file.round_to(np.maximum((high - low) / 255, 2.0**-23), tag)
    zero = (np.clip(np.rint(-low / scale) - 128, -128, 127)).astype(np.float32)
    return scale, zero, np.clip(np.rint(w / scale + zero), -128, 127)


def numpy_flags():
    for w_sym in (True, False):
        for mm_tensor in (True, False):
            for source, dtype, tag in (("BF16", "bfloat16", "BF16"), ("F16", "float16", "F16"),
                                       ("F32", "bfloat16", "BF16"), ("F32", "float16", "F16")):
                name = f"{'' if w_sym else 'a'}sym-{'matrix' if mm_tensor else 'row'}"
                yield pytest.param(w_sym, mm_tensor, source, dtype, tag,
                                   id=f"{name}-{source}-{dtype}")


@pytest.mark.parametrize("w_sym,mm_tensor,source,dtype,tag", numpy_flags())
def test_weights_by_hand(w_sym, mm_tensor, source, dtype, tag, tmp_path):
    tensors = {name: (source, x) for name, (_, x) in TENSORS.items()}
    model = tiny.write_checkpoint(tmp_path / "model", tensors)
    quantize(model, tmp_path / "out", "--dtype", dtype, *([] if w_sym else ["--no-w-sym"]),
             *(["--mm-tensor"] if mm_tensor else []))
    out, stored = (tensor_file.read_folder(folder) for folder in (tmp_path / "out", model))
    for name in LINEARS:
        w = stored[name + ".weight"].data.astype(np.float32)
        scale, zero, q = (symmetric if w_sym else asymmetric)(w, tag, None if mm_tensor else 1)
        shape = (len(w), 1)
        np.testing.assert_array_equal(out[name + ".weight"].data, q, name)
        for part, want in (("weight_scale", scale), ("weight_offset", zero)):
            got = out[f"{name}.{part}"]
            assert (got.tag, got.data.shape) == ("F32", shape)
            np.testing.assert_array_equal(got.data, np.broadcast_to(want, shape), name)
    for name in set(stored) - {n + ".weight" for n in LINEARS}:
        assert out[name].tag == source
        np.testing.assert_array_equal(out[name].data, stored[name].data)


def test_zero_rows_and_pieces(tmp_path):
    """A matrix of several pieces (8 MiB of stored rows each), one of whose rows is zero."""
    config = {"intermediate_size": 150000}
    shape = (150000, tiny.CONFIG["hidden_size"])
    rng = np.random.default_rng(1)
    tensors = dict(TENSORS)
    for i in range(2):
        for name, dims in (("gate", shape), ("up", shape), ("down", shape[::-1])):
            x = rng.normal(0, 0.2, dims).astype(np.float32)
            if name == "up":
                x[140000] = 0
            tensors[f"model.layers.{i}.mlp.{name}_proj.weight"] = ("BF16", x)
    model = tiny.write_checkpoint(tmp_path / "model", tensors, **config)
    quantize(model, tmp_path / "out", "--mm-tensor", "--save", "safe_tensor")
    quantize(model, tmp_path / "rows")
    stored, one, rows = (tensor_file.read_folder(tmp_path / folder)
                         for folder in ("model", "out", "rows"))
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"):
        w = stored[name + ".weight"].data
        scale, _, q = symmetric(w, "BF16", None)
        assert one[name + ".weight_scale"].data.shape == (1,)
        assert one[name + ".weight_scale"].data[0] == scale.item()
        np.testing.assert_array_equal(one[name + ".weight"].data, q)
        scale, _, q = symmetric(w, "BF16", 1)
        zero = ~w.any(1)
        scale[zero] = 1
        np.testing.assert_array_equal(rows[name + ".weight_scale"].data, scale)
        np.testing.assert_array_equal(rows[name + ".weight"].data, q * ~zero[:, None])
    assert rows["model.layers.0.mlp.up_proj.weight_scale"].data[140000] == 1


# ---- Files

def test_description_and_record(model, tmp_path):
    out = tmp_path / "out"
    done = quantize(model, out)
    kinds = description(out)
    assert kinds["model_quant_type"] == "W8A16"
    for name in LINEARS:
        parts = {key.removeprefix(name + "."): kind for key, kind in kinds.items()
                 if key.startswith(name + ".")}
        assert parts == dict.fromkeys(("weight", "weight_scale", "weight_offset"), "W8A16")
    others = {key: kind for key, kind in kinds.items()
              if "." in key and not key.startswith(tuple(LINEARS))}
    assert others and set(others.values()) == {"FLOAT"}
    record = json.loads((out / "tare_run.json").read_text())
    assert record["scheme"] == "W8A16" and "calibration" not in record
    assert "samples" not in done.stdout
    shown = run_tare("inspect", out)
    assert "model_quant_type: W8A16" in shown.stdout and "quantized_linears: 14" in shown.stdout


@pytest.mark.parametrize("w_sym", [[], ["--no-w-sym"]], ids=["sym", "asym"])
@pytest.mark.parametrize("matrix", [[], ["--mm-tensor"]], ids=["row", "matrix"])
def test_save_types_agree_and_verify(w_sym, matrix, model, tmp_path):
    out = tmp_path / "out"
    quantize(model, out, "--save", "ascendv1,safe_tensor,numpy", *w_sym, *matrix)
    done = run_tare("verify", out, "--base", model)
    assert done.returncode == 0 and "warning: rule 12" not in done.stdout, done.stdout
    assert json.loads((out / "safe_tensor/config.json").read_text())["quantize"] == "w8a16"
    ascend = tensor_file.read_folder(out / "ascendv1")
    safe = tensor_file.read_folder(out / "safe_tensor")
    assert {p.name for p in (out / "safe_tensor").glob("*.npy")} == {
        "quant_weight.npy", "weight_scale.npy", "weight_offset.npy", "anti_fp_norm.npy"}
    for part in ("weight", "weight_scale", "weight_offset"):
        file = "quant_weight" if part == "weight" else part
        npy = np.load(out / f"safe_tensor/{file}.npy", allow_pickle=True).item()
        for name in LINEARS:
            np.testing.assert_array_equal(npy[name], safe[f"{name}.{part}"].data)
            np.testing.assert_array_equal(
                np.broadcast_to(npy[name], ascend[f"{name}.{part}"].data.shape),
                ascend[f"{name}.{part}"].data)


def test_fallback_and_head(model, tmp_path):
    out = tmp_path / "out"
    done = quantize(model, out, "--disable-names", "*.down_proj,model.layers.0.mlp.up_proj",
                    "--no-disable-last-linear")
    kinds = description(out)
    assert kinds["lm_head.weight"] == "W8A16" == kinds["model.layers.1.mlp.gate_proj.weight"]
    assert kinds["model.layers.0.mlp.down_proj.weight"] == "FLOAT"
    assert kinds["model.layers.0.mlp.gate_proj.weight"] == "FLOAT" and "fuse" in done.stderr
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    source, tensors = tensor_file.read_folder(model), tensor_file.read_folder(out)
    _, _, q = symmetric(source["model.embed_tokens.weight"].data, "BF16", 1)
    np.testing.assert_array_equal(tensors["lm_head.weight"].data, q)


def test_biases(tmp_path):
    """Qwen2 has q, k and v biases: beside the integers, as they were, FLOAT."""
    tensors = dict(TENSORS)
    for i in range(2):
        for part, n in (("q", 32), ("k", 16), ("v", 16)):
            bias = np.linspace(-1, 1, n, dtype=np.float32)
            tensors[f"model.layers.{i}.self_attn.{part}_proj.bias"] = ("BF16", bias)
    model = tiny.write_checkpoint(tmp_path / "model", tensors, model_type="qwen2")
    quantize(model, tmp_path / "out", "--save", "ascendv1,numpy", "--disable-names",
             "model.layers.1.self_attn.*_proj")
    out, source = (tensor_file.read_folder(f) for f in (tmp_path / "out/ascendv1", model))
    npy = np.load(tmp_path / "out/safe_tensor/quant_weight.npy", allow_pickle=True).item()
    for name in (n for n in source if n.endswith(".bias")):
        assert description(tmp_path / "out/ascendv1")[name] == "FLOAT"
        np.testing.assert_array_equal(out[name].data, source[name].data)
        np.testing.assert_array_equal(npy[name], source[name].data)


@pytest.mark.parametrize("flags", [[], ["--no-w-sym", "--mm-tensor"],
                                   ["--compat", "msmodelslim", "--dtype", "float16"]],
                         ids=lambda flags: " ".join(flags) or "default")
def test_threads_and_runs_change_nothing(flags, model, tmp_path):
    for name, threads in (("a", 1), ("b", 2), ("c", 2), ("d", 5)):
        quantize(model, tmp_path / name, "--threads", threads, *flags)
    a = output_files(tmp_path / "a")
    assert a == output_files(tmp_path / "b") == output_files(tmp_path / "c") == output_files(tmp_path / "d")


@pytest.mark.parametrize("flags", [[], ["--no-w-sym"]], ids=["sym", "asym"])
def test_cpu_changes_no_weight(flags, model, tmp_path):
    quantize(model, tmp_path / "auto", *flags)
    quantize(model, tmp_path / "scalar", "--cpu", "scalar", *flags)
    assert (tmp_path / "auto" / SHARD).read_bytes() == (tmp_path / "scalar" / SHARD).read_bytes()


# ---- Prompts

def test_prompts_are_not_read(model, tmp_path):
    plain, given = tmp_path / "a", tmp_path / "b"
    quantize(model, plain)
    done = quantize(model, given, "--calib", tmp_path / "absent.jsonl")
    assert output_files(plain) == output_files(given)
    assert "--calib is not read" in done.stderr


def test_level_without_prompts_is_l0(model, tmp_path):
    quantize(model, tmp_path / "a")
    done = quantize(model, tmp_path / "b", "--disable-level", "L3")
    assert "warning" in done.stderr and "L3 is taken as L0" in done.stderr
    assert description(tmp_path / "a") == description(tmp_path / "b")


def test_level_with_prompts(model, tmp_path):
    """The same linears as the W8A8 run's, which ranks by the same float model."""
    calib = tiny.write_prompts(tmp_path / "prompts.jsonl")
    quantize(model, tmp_path / "a", "--calib", calib, "--disable-level", "L3")
    done = run_tare("quantize", model, "--out", tmp_path / "b", "--calib", calib,
                    "--disable-level", "L3")
    assert done.returncode == 0, done.stderr
    floats = [{key for key, kind in description(tmp_path / out).items() if kind == "FLOAT"}
              for out in ("a", "b")]
    assert floats[0] == floats[1] and len(floats[0] & {n + ".weight" for n in LINEARS}) >= 3


# ---- Refusals

@pytest.mark.parametrize("flags,words", [
    (["--anti-method", "m3"], ["anti_outlier.anti_method", "a_bit 8"]),
    (["--fa-quant"], ["fa_quant", "a_bit 8"]),
    (["--w-bit", "4"], ["w_bit 4", "8 with 16"]),
    (["--disable-names", "model.layers.9.mlp.up_proj"], ["model.layers.9.mlp.up_proj"]),
], ids=lambda x: " ".join(x) if x[0].startswith("--") else "")
def test_refused_settings(flags, words, model, tmp_path):
    for calib in ([], ["--calib", tiny.write_prompts(tmp_path / "prompts.jsonl")]):
        assert_refused(run(model, tmp_path / "out", *flags, *calib), tmp_path / "out", *words)


def test_asymmetric_weights_need_float_activations(model, tmp_path):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--a-bit", 8, "--no-w-sym")
    assert_refused(done, tmp_path / "out", "w_sym")


def test_asymmetric_weights_and_vllm_ascend(model, tmp_path):
    done = quantize(model, tmp_path / "out", "--no-w-sym")
    assert "vLLM-Ascend" in done.stderr
    done = run_tare("verify", tmp_path / "out", "--target", "vllm-ascend")
    assert done.returncode == 1 and "rule 9" in done.stdout
    quantize(model, tmp_path / "sym")
    assert run_tare("verify", tmp_path / "sym", "--target", "vllm-ascend").returncode == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name,word", [
    ("model.layers.1.mlp.up_proj.weight", "row 0, column 5"),
    ("model.embed_tokens.weight", "element 5"), ("model.norm.weight", "element 5")])
def test_not_finite(name, word, value, tmp_path):
    tensors = {n: ("F32", x.copy()) for n, (_, x) in TENSORS.items()}
    tensors[name][1].flat[5] = value
    model = tiny.write_checkpoint(tmp_path / "model", tensors)
    out = tmp_path / "out"
    done = run(model, out)
    assert done.returncode == 1 and word in done.stderr
    assert name.removesuffix(".weight") in done.stderr
    assert not out.exists() or not list(out.iterdir())


def test_truncated_checkpoint(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert run(model, tmp_path / "out").returncode == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

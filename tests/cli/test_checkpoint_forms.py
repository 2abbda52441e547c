"""Checkpoints that transformers loads, in forms other than the usual one; and what engines would
choose otherwise than config.json or the weights say. (Against transformers itself:
tests/oracle/test_transformers.py.)
"""
import json

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import run_tare

WEIGHTS = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def plain(model, calib, tmp_path_factory):
    """What quantizing the usual form gives."""
    out = tmp_path_factory.mktemp("plain") / "out"
    assert not warnings(quantize(model, calib, out))
    return read_output(out)


def quantize(model, calib, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--calib", calib, *flags, timeout=60)
    assert done.returncode == 0, done.stderr
    verified = run_tare("verify", out, "--base", model)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    return done


def warnings(done):
    return [line for line in done.stderr.splitlines() if "warning" in line]


def read_output(out):
    """{name: (tag, bytes)} of the tensors, and the description."""
    tensors = {name: (t.tag, t.data.tobytes()) for name, t in tensor_file.read_folder(out).items()}
    return tensors, json.loads((out / "quant_model_description.json").read_text())


def read_config(out):
    return json.loads((out / "config.json").read_text())


def write_weights(folder, tensors):
    tensor_file.write(folder / WEIGHTS, tensors)


def refused(model, calib, out):
    done = run_tare("quantize", model, "--out", out, "--calib", calib, timeout=60)
    assert done.returncode != 0 and not out.exists(), done.stderr
    assert "calibrate" not in done.stderr
    return done.stderr


# ---- names

def test_names_of_the_bare_decoder(calib, plain, tmp_path):
    """AutoModel.save_pretrained writes them so; the output has the names that engines expect."""
    model = tiny.write_checkpoint(tmp_path / "model")
    tensors = tiny.make_tensors()
    write_weights(model, {name.removeprefix("model."): t for name, t in tensors.items()})
    assert not warnings(quantize(model, calib, tmp_path / "out"))
    assert read_output(tmp_path / "out") == plain


def test_one_name_with_the_prefix_is_enough(calib, tmp_path):
    """transformers completes names only if no name begins with "model"."""
    model = tiny.write_checkpoint(tmp_path / "model")
    tensors = {name.removeprefix("model."): t for name, t in tiny.make_tensors().items()}
    write_weights(model, {**tensors, "model.norm.weight": tensors["norm.weight"]})
    assert f"{EMBEDDING} is missing" in refused(model, calib, tmp_path / "out")


# ---- the index

def stale(index):
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = (
        "model-00001-of-00002.safetensors")
    return "1 of its tensors are in no file"


def misplaced(index):
    index["weight_map"][EMBEDDING] = "model-00002-of-00002.safetensors"
    return "1 of its tensors are in other files"


def incomplete(index):
    for name in list(index["weight_map"])[2:-2]:
        del index["weight_map"][name]
    return "tensors of its files are not in it"


@pytest.mark.parametrize("change", [stale, misplaced, incomplete])
def test_index_is_a_list_of_files(change, calib, plain, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    index = tiny.write_shards(model)
    words = change(index)
    tiny.write_index(model, index)
    found = warnings(quantize(model, calib, tmp_path / "out"))
    assert len(found) == 1 and words in found[0]
    assert read_output(tmp_path / "out") == plain


def test_metadata_null(calib, plain, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    head, data = tensor_file.header(model / WEIGHTS)
    head["__metadata__"] = None
    tensor_file.write_raw(model / WEIGHTS, json.dumps(head).encode(), data)
    assert not warnings(quantize(model, calib, tmp_path / "out"))
    assert read_output(tmp_path / "out") == plain


# ---- dtype

@pytest.mark.parametrize("tag,name", [("BF16", "bfloat16"), ("F16", "float16"),
                                      ("F32", "float32")])
@pytest.mark.parametrize("flags", [(), ("--a-bit", "16")], ids=["w8a8", "w8a16"])
def test_config_without_dtype(tag, name, flags, calib, tmp_path):
    """The weights' dtype, as dtype="auto" of transformers; the output is the one of a config.json
    that says so."""
    says = tiny.write_checkpoint(tmp_path / "says", torch_dtype=name)
    silent = tiny.write_checkpoint(tmp_path / "silent", torch_dtype=None)
    for model in (says, silent):
        write_weights(model, {n: (tag, x) for n, (_, x) in tiny.make_tensors().items()})
        quantize(model, calib, tmp_path / f"{model.name}.out", *flags)
    assert read_output(tmp_path / "silent.out") == read_output(tmp_path / "says.out")
    assert read_config(tmp_path / "silent.out")["torch_dtype"] == name


def test_two_dtypes(calib, plain, tmp_path):
    """transformers takes `dtype`; the output says one."""
    model = tiny.write_checkpoint(tmp_path / "model", torch_dtype="float16", dtype="bfloat16")
    quantize(model, calib, tmp_path / "out")
    assert read_output(tmp_path / "out") == plain
    config = read_config(tmp_path / "out")
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_first_float_by_name_counts(calib, tmp_path):
    """get_state_dict_dtype looks at one tensor: the first, and safetensors lists them by name."""
    model = tiny.write_checkpoint(tmp_path / "model", torch_dtype=None)
    tensors = {n: ("F32", x) if n != EMBEDDING else (tag, x)
               for n, (tag, x) in tiny.make_tensors().items()}
    write_weights(model, {**tensors, "a.buffer": ("I32", np.zeros(3, np.int32))})
    run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib, "--no-verify")
    assert read_config(tmp_path / "out")["torch_dtype"] == "bfloat16"


# ---- tensors that nobody uses

def test_what_the_config_denies_is_left_out(calib, plain, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    more = {"model.layers.0.self_attn.q_proj.bias": 32, "model.layers.1.mlp.down_proj.bias": 32,
            "model.layers.1.self_attn.q_norm.weight": 8, "model.norm.bias": 32, "lm_head.bias": 260}
    write_weights(model, tiny.make_tensors() |
                  {name: ("BF16", np.ones(n, np.float32)) for name, n in more.items()})
    found = warnings(quantize(model, calib, tmp_path / "out"))
    assert len(found) == 1 and "5 tensors" in found[0] and "q_proj.bias" in found[0]
    assert read_output(tmp_path / "out") == plain


@pytest.mark.parametrize("flags", [(), ("--a-bit", "16"), ("--anti-method", "m4")], ids=str)
def test_fewer_layers(flags, calib, tmp_path):
    """As if the layers that num_hidden_layers excludes were not in the file."""
    model = tiny.write_checkpoint(tmp_path / "two", num_hidden_layers=1)
    found = warnings(quantize(model, calib, tmp_path / "out", *flags))
    assert len(found) == 1 and "9 tensors" in found[0] and "num_hidden_layers (1)" in found[0]
    small = tiny.write_checkpoint(tmp_path / "one", num_hidden_layers=1, tensors={
        name: t for name, t in tiny.make_tensors().items() if ".layers.1." not in name})
    quantize(small, calib, tmp_path / "expected", *flags)
    assert read_output(tmp_path / "out") == read_output(tmp_path / "expected")


# ---- tied heads

@pytest.mark.parametrize("flags", [(), ("--no-disable-last-linear",)], ids=["float", "quantized"])
def test_tied_with_another_head(flags, calib, tmp_path):
    """transformers and vLLM use the embedding; so does the output, whose head may be quantized."""
    without = tiny.write_checkpoint(tmp_path / "without")
    model = tiny.write_checkpoint(tmp_path / "model")
    tensors = tiny.make_tensors()
    write_weights(model, {**tensors, HEAD: ("BF16", 1 - tensors[EMBEDDING][1])})
    found = warnings(quantize(model, calib, tmp_path / "out", *flags))
    assert len(found) == 1 and "lm_head.weight differs from the embedding" in found[0]
    quantize(without, calib, tmp_path / "expected", *flags)
    assert read_output(tmp_path / "out") == read_output(tmp_path / "expected")
    assert read_config(tmp_path / "out") == read_config(tmp_path / "expected")


def test_tied_with_the_same_head(calib, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    tensors = tiny.make_tensors()
    write_weights(model, {**tensors, HEAD: tensors[EMBEDDING]})
    assert not warnings(quantize(model, calib, tmp_path / "out"))


# ---- zeros

def zero(tensors, name):
    tag, x = tensors[name]
    tensors[name] = (tag, np.zeros_like(x))


@pytest.mark.parametrize("flags", [(), ("--a-bit", "16"), ("--anti-method", "m1"),
                                   ("--dry-run", "--no-probe")], ids=str)
def test_zeros_are_named(flags, calib, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    tensors = tiny.make_tensors()
    names = ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight",
             "model.norm.weight"]
    for name in names:
        zero(tensors, name)
    tensors["model.layers.0.self_attn.k_proj.weight"][1][:] = -0.0
    tensors["model.layers.1.mlp.gate_proj.weight"][1].flat[:-1] = 0  # all but the last
    write_weights(model, tensors)
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib, "--no-verify",
                    *flags)
    found = [line for line in done.stderr.splitlines() if "zero throughout" in line]
    assert len(found) == 1 and "3 weights" in found[0] and "gate_proj" not in found[0]
    assert all(name in found[0] for name in names)


def test_holes_and_many_zeros(calib, tmp_path):
    """A file that a download tool made at full size and left as a hole: a dozen names at most."""
    model = tiny.write_checkpoint(tmp_path / "model")
    path = model / WEIGHTS
    size, (_, data) = path.stat().st_size, tensor_file.header(path)
    with open(path, "r+b") as file:
        file.truncate(size - len(data))
        file.truncate(size)
    done = run_tare("quantize", model, "--calib", calib, "--dry-run", "--no-probe")
    found, = (line for line in done.stderr.splitlines() if "zero throughout" in line)
    assert f"{len(tiny.make_tensors())} weights" in found and found.endswith(", …")
    assert found.count(".weight") == 12


# ---- quantized already

def rename_to_gptq(tensors):
    """The tensors of q_proj as GPTQ has them."""
    tensors = dict(tensors)
    for name in [n for n in tensors if n.endswith("q_proj.weight")]:
        del tensors[name]
        tensors[name.replace(".weight", ".qweight")] = ("I32", np.zeros((4, 32), np.int32))
        tensors[name.replace(".weight", ".scales")] = ("F16", np.zeros((1, 32), np.float16))
    return tensors


def make_int8(tensors):
    return {name: ("I8", np.zeros(x.shape, np.int8)) if name.endswith("proj.weight") else (tag, x)
            for name, (tag, x) in tensors.items()}


def add_scales(tensors):
    return tensors | {"model.layers.0.mlp.up_proj.weight_scale": ("F32", np.ones((72, 1)))}


@pytest.mark.parametrize("change,config,method", [
    (rename_to_gptq, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    (rename_to_gptq, {"quantization_config": {"quant_method": "awq"}}, "awq"),
    (rename_to_gptq, {}, "gptq or awq"),
    (make_int8, {"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
    (make_int8, {"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
    (make_int8, {"compression_config": {"format": "int-quantized"}}, "compressed-tensors"),
    (make_int8, {"quantization_config": {"quant_algo": "FP8", "producer": {"name": "modelopt"}}},
     "modelopt"),
    (add_scales, {"quantization_config": {"quant_method": "compressed-tensors"}},
     "compressed-tensors"),
], ids=lambda x: getattr(x, "__name__", str(x)))
def test_quantized_already(change, config, method, calib, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model", tensors=change(tiny.make_tensors()), **config)
    message = refused(model, calib, tmp_path / "out")
    assert f"already quantized by {method} (" in message and "give the float original" in message


@pytest.mark.parametrize("save", ["ascendv1", "safe_tensor", "compressed-tensors"])
@pytest.mark.parametrize("flags", [(), ("--a-bit", "16")], ids=["w8a8", "w8a16"])
def test_own_output_is_quantized_already(save, flags, model, calib, tmp_path):
    quantize(model, calib, tmp_path / "out", "--save", save, *flags)
    message = refused(tmp_path / "out", calib, tmp_path / "again")
    method = "compressed-tensors" if save == "compressed-tensors" else "msModelSlim or tare"
    assert f"already quantized by {method}" in message


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_quantization_config_left_over(key, calib, plain, tmp_path):
    """The weights are float and complete: a warning, and the output does not say so."""
    model = tiny.write_checkpoint(tmp_path / "model", **{key: {"quant_method": "fp8"}})
    found = warnings(quantize(model, calib, tmp_path / "out"))
    assert len(found) == 1 and key in found[0] and "fp8" in found[0]
    assert read_output(tmp_path / "out") == plain
    assert key not in read_config(tmp_path / "out")


# ---- the files beside

@pytest.mark.parametrize("text", ["", " \n", "{}"], ids=["nothing", "blank", "empty"])
def test_empty_generation_config(text, calib, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    expected = run_tare("generate", model, tiny.PROMPTS[0], "--max-new-tokens", "3")
    (model / "generation_config.json").write_text(text)
    done = run_tare("generate", model, tiny.PROMPTS[0], "--max-new-tokens", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout
    quantize(model, calib, tmp_path / "out")


def test_a_config_of_json_null(calib, plain, tmp_path):
    """Keys that are null are as if absent."""
    model = tiny.write_checkpoint(tmp_path / "model")
    config = {**tiny.CONFIG, "head_dim": None, "rope_scaling": None, "partial_rotary_factor": None,
              "quantization_config": None}
    (model / "config.json").write_text(json.dumps(config))
    assert not warnings(quantize(model, calib, tmp_path / "out"))
    assert read_output(tmp_path / "out") == plain

"""Bad input gets one clear sentence, the right exit status, and leaves nothing behind.

2: a wrong command line, recipe or folder. 1: everything else.
"""
import json
import os
import struct

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import run_tare

BAD_COMMAND, BAD_DATA = 2, 1


@pytest.fixture
def model(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model")


@pytest.fixture
def calib(tmp_path):
    return tiny.write_prompts(tmp_path / "prompts.jsonl")


def quantize(model, calib, out, *flags):
    return run_tare("quantize", model, "--out", out, "--calib", calib, *flags, timeout=60)


def assert_refused(done, status, *words):
    """The status, and one sentence that holds each of `words`."""
    assert done.returncode == status, (done.returncode, done.stderr)
    for word in words:
        assert word in done.stderr
    assert "AddressSanitizer" not in done.stderr and "LeakSanitizer" not in done.stderr


def assert_nothing_written(out):
    assert not out.exists() or list(out.iterdir()) == []


# ---- Checkpoints

WEIGHTS = "model.safetensors"
TENSOR = "model.layers.1.mlp.up_proj.weight"


def change_tensor(folder, name, tag, values):
    tensor_file.write(folder / WEIGHTS, {**tiny.make_tensors(), name: (tag, values)})


def poke(folder, name, value):
    """Puts one value into a tensor."""
    tensors = tiny.make_tensors()
    tensors[name][1].flat[5] = value
    write_bf16_with(folder, tensors)


def write_bf16_with(folder, tensors):
    """Like tensor_file.write, for values that rounding to BF16 would not survive."""
    tensor_file.write(folder / WEIGHTS, {name: ("F32", x) for name, (_, x) in tensors.items()})


def without_tensor(folder):
    tensors = tiny.make_tensors()
    del tensors[TENSOR]
    tensor_file.write(folder / WEIGHTS, tensors)


def truncate(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def cut_inside_header(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:100])


def overlap(folder):
    head, data = tensor_file.header(folder / WEIGHTS)
    begin, end = head[TENSOR]["data_offsets"]
    head[TENSOR]["data_offsets"] = [begin - 64, end - 64]
    tensor_file.write_raw(folder / WEIGHTS, json.dumps(head).encode(), data)


def header_length(folder, length):
    path = folder / WEIGHTS
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def duplicate_key(folder):
    head, data = tensor_file.header(folder / WEIGHTS)
    text = json.dumps(head)
    entry = f'"{TENSOR}": {json.dumps(head[TENSOR])}'
    assert entry in text
    tensor_file.write_raw(folder / WEIGHTS, text.replace(entry, f"{entry}, {entry}").encode(), data)


def absurd_shape(folder):
    head, data = tensor_file.header(folder / WEIGHTS)
    head[TENSOR]["shape"] = [1 << 62, 1 << 62]
    tensor_file.write_raw(folder / WEIGHTS, json.dumps(head).encode(), data)


def index_names(folder, file):
    index = tiny.write_shards(folder)
    index["weight_map"][TENSOR] = file
    tiny.write_index(folder, index)


def missing_shard(folder):
    tiny.write_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def shard_is(folder, make):
    tiny.write_shards(folder)
    path = folder / "model-00002-of-00002.safetensors"
    path.unlink()
    make(path)


def pickle_only(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def overflowing_activation(folder):
    """Every weight is finite; the second layer's MLP input is not."""
    tensors = tiny.make_tensors()
    tensors["model.layers.1.post_attention_layernorm.weight"][1][:] = 3e38
    tensor_file.write(folder / WEIGHTS, tensors)


DEEP_JSON = "[" * 200000
CHECKPOINTS = {
    "no model_type": (lambda f: tiny.write_config(f, model_type=None),
                      ["model_type", "llama", "qwen2", "qwen3"]),
    "unknown model_type": (lambda f: tiny.write_config(f, model_type="gpt_neox"),
                           ["gpt_neox", "llama", "qwen2", "qwen3"]),
    "no config.json": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "config.json is no JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json"]),
    "config.json is deep": (lambda f: (f / "config.json").write_text(DEEP_JSON), ["config.json"]),
    "absurd hidden_size": (lambda f: tiny.write_config(f, hidden_size=10**18), ["config.json"]),
    "heads do not divide": (lambda f: tiny.write_config(f, num_key_value_heads=3),
                            ["num_key_value_heads"]),
    "hidden_act": (lambda f: tiny.write_config(f, hidden_act="gelu"), ["hidden_act", "gelu"]),
    "rope type": (lambda f: tiny.write_config(f, rope_scaling={"rope_type": "ntk"}), ["ntk"]),
    "missing tensor": (without_tensor, [TENSOR]),
    "wrong shape": (lambda f: change_tensor(f, TENSOR, "BF16", np.ones((72, 31), np.float32)),
                    [TENSOR, "72"]),
    "transposed": (lambda f: change_tensor(f, TENSOR, "BF16", np.ones((32, 72), np.float32)),
                   [TENSOR]),
    "wrong dtype": (lambda f: change_tensor(f, TENSOR, "I32", np.ones((72, 32), np.int32)),
                    [TENSOR, "I32"]),
    "truncated": (truncate, [WEIGHTS]),
    "cut inside the header": (cut_inside_header, [WEIGHTS]),
    "empty weight file": (lambda f: (f / WEIGHTS).write_bytes(b""), [WEIGHTS]),
    "overlapping tensors": (overlap, [WEIGHTS]),
    "header longer than the file": (lambda f: header_length(f, 1 << 40), [WEIGHTS]),
    "header length wraps": (lambda f: header_length(f, (1 << 64) - 4), [WEIGHTS]),
    "header length zero": (lambda f: header_length(f, 0), [WEIGHTS]),
    "duplicate keys": (duplicate_key, [TENSOR]),
    "shape product wraps": (absurd_shape, [TENSOR]),
    "index names a missing file": (missing_shard, ["model-00002-of-00002.safetensors"]),
    "index with a folder": (lambda f: index_names(f, "sub/x.safetensors"), ["sub/x.safetensors"]),
    "index with dots": (lambda f: index_names(f, "../x.safetensors"), ["../x.safetensors"]),
    "index is only dots": (lambda f: index_names(f, ".."), ["index.json"]),
    "index with an absolute path": (lambda f: index_names(f, "/etc/passwd"), ["/etc/passwd"]),
    "shard is a FIFO": (lambda f: shard_is(f, os.mkfifo), ["model-00002-of-00002.safetensors"]),
    "shard is a device": (lambda f: shard_is(f, lambda p: p.symlink_to("/dev/zero")),
                          ["model-00002-of-00002.safetensors"]),
    "shard is a folder": (lambda f: shard_is(f, os.mkdir), ["model-00002-of-00002.safetensors"]),
    "pickle only": (pickle_only, ["safetensors"]),
    "NaN in a weight": (lambda f: poke(f, TENSOR, np.nan),  # read ahead: the layer is named once
                        ["tare: model.layers.1: model.layers.1.mlp.up_proj.weight: element"]),
    "infinity in a weight": (lambda f: poke(f, TENSOR, -np.inf), ["model.layers.1.mlp.up_proj"]),
    "NaN in a norm": (lambda f: poke(f, "model.layers.0.input_layernorm.weight", np.nan),
                      ["model.layers.0.input_layernorm"]),
    "infinity in an activation": (overflowing_activation, ["layers.1"]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(name, model, calib, tmp_path):
    damage, words = CHECKPOINTS[name]
    damage(model)
    out = tmp_path / "out"
    assert_refused(quantize(model, calib, out), BAD_DATA, *words)
    assert_nothing_written(out)


def test_no_such_model(calib, tmp_path):
    done = quantize(tmp_path / "nowhere", calib, tmp_path / "out")
    assert_refused(done, BAD_DATA, "nowhere")
    assert_nothing_written(tmp_path / "out")


# ---- Calibration files

IDS = [[1, 2, 3], [4, 5]]
CALIBRATIONS = {
    "empty file": ("c.jsonl", b"", ["c.jsonl"]),
    "blank lines": ("c.jsonl", b"\n\n \n", ["c.jsonl"]),
    "empty list": ("c.json", b"[]", ["c.json"]),
    "empty text": ("c.txt", b"", ["c.txt"]),
    "no known key": ("c.jsonl", b'{"prompt": "a"}\n{"words": "b"}\n', ["c.jsonl", "2"]),
    "not JSON": ("c.jsonl", b'{"prompt": "a"}\n{"prompt": \n', ["c.jsonl", "2"]),
    "deep JSON": ("c.json", DEEP_JSON.encode(), ["c.json"]),
    "not UTF-8": ("c.txt", b"good line\n\xff\xfe bad\n", ["c.txt"]),
    "no tokens in text": ("c.jsonl", b'{"prompt": "a"}\n{"prompt": ""}\n', ["c.jsonl", "2"]),
    "no tokens in ids": ("c.json", b"[[1, 2], []]", ["c.json", "2"]),
    "longer than the model": ("c.json", json.dumps([[1], [7] * 129]).encode(),
                              ["c.json", "2", "129", "128", "max-length"]),
    "id out of range": ("c.json", b"[[1, 2], [3, 260]]", ["260", "2"]),
    "negative id": ("c.json", b"[[1, 2], [3, -1]]", ["c.json", "2"]),
    "huge id": ("c.json", b"[[1, 2], [18446744073709551617]]", ["c.json", "2"]),
    "id is no integer": ("c.json", b"[[1, 2], [1.5]]", ["c.json", "2"]),
}


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_calibration(name, model, tmp_path):
    file, content, words = CALIBRATIONS[name]
    (tmp_path / file).write_bytes(content)
    out = tmp_path / "out"
    assert_refused(quantize(model, tmp_path / file, out), BAD_DATA, *words)
    assert_nothing_written(out)


def test_calibration_missing(model, tmp_path):
    done = quantize(model, tmp_path / "none.jsonl", tmp_path / "out")
    assert_refused(done, BAD_DATA, "none.jsonl")


def test_calibration_is_a_fifo(model, tmp_path):
    os.mkfifo(tmp_path / "c.jsonl")
    assert_refused(quantize(model, tmp_path / "c.jsonl", tmp_path / "out"), BAD_DATA, "c.jsonl")


def test_text_without_a_tokenizer(model, calib, tmp_path):
    (model / "tokenizer.json").unlink()
    assert_refused(quantize(model, calib, tmp_path / "out"), BAD_DATA, "tokenizer.json")
    assert_nothing_written(tmp_path / "out")


# ---- Settings and the command line

SETTINGS = {
    "act-method": (["--act-method", "5"], ["act_method", "5", "4"]),
    "final scales in compat": (["--final-scales", "--compat", "msmodelslim"], ["final_scales"]),
    "gptq in compat": (["--weight-method", "gptq", "--compat", "msmodelslim"],
                       ["weight_method", "ssz, minmax"]),
    "gptq without final scales": (["--weight-method", "gptq", "--no-final-scales"], ["final_scales"]),
    "gptq asymmetric": (["--weight-method", "gptq", "--scheme", "w8a16", "--no-w-sym"], ["w_sym", "gptq"]),
    "weight-method": (["--weight-method", "awq"], ["weight_method", "ssz, minmax, gptq"]),
    "act-method 4 in compat": (["--act-method", "4", "--compat", "msmodelslim"], ["act_method"]),
    "act-method text": (["--act-method", "max"], ["act_method", "max"]),
    "unknown layer": (["--disable-names", "model.layers.0.mlp.donw_proj"],
                      ["donw_proj", "model.layers.0.mlp.down_proj"]),
    "pattern without a match": (["--disable-names", "*.experts.*"], ["*.experts.*"]),
    "one of two unknown": (["--disable-names", "lm_head,model.layers.9.mlp.up_proj"],
                           ["model.layers.9.mlp.up_proj", "model.layers.1.mlp.up_proj"]),
    "level": (["--disable-level", "5"], ["disable_level"]),
    "level with zero": (["--disable-level", "L05"], ["disable_level", "L05"]),
    "bits": (["--w-bit", "4"], ["w_bit"]),
    "asymmetric": (["--no-w-sym"], ["w_sym"]),
    "pr": (["--pr", "1.5"], ["pr", "1.5"]),
    "pr NaN": (["--pr", "nan"], ["pr"]),
    "save type": (["--save", "ascendv1,gguf"], ["gguf", "safe_tensor"]),
    "dtype": (["--dtype", "int8"], ["int8", "bfloat16"]),
    "compat": (["--compat", "gptq"], ["gptq", "msmodelslim"]),
    "compute": (["--compute", "fp8"], ["fp8"]),
    "samples": (["--samples", "-1"], ["samples"]),
    "max-length": (["--max-length", "x"], ["max_length"]),
    "part size": (["--part-file-size", "-2"], ["part_file_size"]),
    "threads": (["--threads", "-1"], ["threads"]),
    "anti-method": (["--anti-method", "m7"], ["anti_method", "m7", "m1", "m6"]),
    "strength without a method": (["--recipe", "llama3.1-70b", "--anti-method", "none", "--alpha", "1"],
                   ["anti_method", "m1"]),
    "fa-amp alone": (["--fa-amp", "1"], ["fa_amp", "--fa-quant"]),
    "fa-v-method alone": (["--fa-v-method", "mse"], ["v_method", "--fa-quant"]),
    "fa-v-method": (["--fa-quant", "--fa-v-method", "min"], ["v_method", "max, mse"]),
    "fa-v-method in compat": (["--fa-quant", "--fa-v-method", "mse", "--compat", "msmodelslim"],
                              ["v_method"]),
    "fa-amp negative": (["--fa-quant", "--fa-amp", "-1"], ["fa_amp = -1 is smaller than 0."]),
    "fa-amp float": (["--fa-quant", "--fa-amp", "1.5"], ["fa_amp must be int, not float."]),
    "shipped recipe": (["--recipe", "llama"], ["all-int8, best-c8, best-static", "default, llama3.1-70b, qwen2.5-72b, qwen3-moe-w8a8"]),
    "unknown flag": (["--turbo"], ["--turbo"]),
    "flag without value": (["--act-method"], ["--act-method"]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_setting(name, model, calib, tmp_path):
    flags, words = SETTINGS[name]
    out = tmp_path / "out"
    assert_refused(quantize(model, calib, out, *flags), BAD_COMMAND, *words)
    assert_nothing_written(out)


COMMANDS = {
    "nothing": ([], []),
    "unknown command": (["quantise"], ["quantise", "quantize"]),
    "no model": (["quantize"], []),
    "no out": (["quantize", "MODEL"], ["--out"]),
    "no calib": (["quantize", "MODEL", "--out", "OUT"], ["--calib"]),
    "two models": (["quantize", "MODEL", "MODEL", "--out", "OUT"], []),
    "verify nothing": (["verify"], []),
    "verify target": (["verify", "MODEL", "--target", "tgi"], ["tgi", "vllm-ascend"]),
    "inspect nothing": (["inspect"], []),
    "tokenize without text": (["tokenize", "MODEL"], ["--text"]),
    "help of nothing": (["help", "fly"], ["fly"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_line(name, model, tmp_path):
    args, words = COMMANDS[name]
    places = {"MODEL": model, "OUT": tmp_path / "out"}
    done = run_tare(*[places.get(a, a) for a in args])
    assert_refused(done, BAD_COMMAND, *words)
    assert done.stderr.strip()
    assert_nothing_written(tmp_path / "out")


RECIPES = {
    "no YAML": ("quant: [1, 2\n", ["r.yaml"]),
    "unknown section": ("quantum: {act_method: 1}\n", ["quantum"]),
    "unknown key": ("quant:\n  act_metod: 1\n", ["act_metod", "act_method"]),
    "wrong value": ("quant:\n  act_method: 7\n", ["act_method", "7"]),
    "wrong type": ("quant:\n  act_method: [1]\n", ["act_method"]),
    "a list": ("- quant\n", ["r.yaml"]),
    "key twice": ("quant:\n  act_method: 1\n  act_method: 2\n", ["act_method"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, model, calib, tmp_path):
    text, words = RECIPES[name]
    (tmp_path / "r.yaml").write_text(text)
    done = quantize(model, calib, tmp_path / "out", "--recipe", tmp_path / "r.yaml")
    assert_refused(done, BAD_COMMAND, *words)
    assert_nothing_written(tmp_path / "out")


def test_recipe_missing(model, calib, tmp_path):
    done = quantize(model, calib, tmp_path / "out", "--recipe", tmp_path / "none.yaml")
    assert_refused(done, BAD_COMMAND, "none.yaml")


# ---- Output folders

def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_out_not_empty(model, calib, tmp_path):
    out = tmp_path / "out"
    assert quantize(model, calib, out).returncode == 0
    before = snapshot(out)
    assert_refused(quantize(model, calib, out), BAD_COMMAND, str(out), "--overwrite")
    assert snapshot(out) == before


def test_out_with_a_foreign_file(model, calib, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert_refused(quantize(model, calib, out), BAD_COMMAND, "notes.txt")
    assert snapshot(out) == {(out / "notes.txt").relative_to(out): b"mine"}


def test_out_with_foreign_weights(model, calib, tmp_path):
    """A left-over float shard would be loaded with the output: refused even with --overwrite."""
    out = tmp_path / "out"
    out.mkdir()
    tensor_file.write(out / "model.safetensors", {"a": ("F32", np.ones(2))})
    before = snapshot(out)
    done = quantize(model, calib, out, "--overwrite")
    assert_refused(done, BAD_COMMAND, "model.safetensors")
    assert snapshot(out) == before


@pytest.mark.parametrize("place", ["/proc/tare-out", "/dev/null/out"])
def test_out_not_writable(place, model, calib):
    assert_refused(quantize(model, calib, place), BAD_COMMAND, place)


def test_out_is_a_file(model, calib, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert_refused(quantize(model, calib, tmp_path / "out"), BAD_COMMAND, str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_folders_inside_each_other(model, calib, tmp_path):
    before = snapshot(model)
    (tmp_path / "link").symlink_to(model)
    for out in (model, model / "w8a8", tmp_path, tmp_path / "link" / "w8a8"):
        for flags in ([], ["--overwrite"]):
            assert_refused(quantize(model, calib, out, *flags), BAD_COMMAND, "model")
    assert snapshot(model) == before


def test_failure_with_overwrite_keeps_the_old_output(model, calib, tmp_path):
    out = tmp_path / "out"
    assert quantize(model, calib, out).returncode == 0
    before = snapshot(out)
    poke(model, TENSOR, np.nan)
    assert quantize(model, calib, out, "--overwrite").returncode == BAD_DATA
    assert snapshot(out) == before


# ---- The other commands

def test_verify_of_no_output(model):
    done = run_tare("verify", model)
    assert done.returncode == BAD_DATA


def test_inspect_of_nothing(tmp_path):
    assert_refused(run_tare("inspect", tmp_path / "nothing"), BAD_DATA, "nothing")


BAD_TOKENIZERS = {
    "no JSON": "{", "a list": "[]", "no model": "{}", "deep": DEEP_JSON,
    "unknown model": json.dumps({**tiny.make_tokenizer(), "model": {"type": "Unigram"}}),
    "unknown step": json.dumps({**tiny.make_tokenizer(), "pre_tokenizer": {"type": "Whistle"}}),
}


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_tokenizer(name, model, calib):
    (model / "tokenizer.json").write_text(BAD_TOKENIZERS[name])
    assert_refused(run_tare("tokenize", model, "--text", calib), BAD_DATA, "tokenizer.json")

"""verify, inspect, tokenize, help and version."""
import json
import struct

import pytest
import tensor_file
import tiny
from conftest import ROOT, run_tare
from tokenizers import Tokenizer

WEIGHTS = "quant_model_weights-00001-of-00001.safetensors"


@pytest.fixture
def model(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model")


@pytest.fixture
def out(model, tmp_path):
    calib = tiny.write_prompts(tmp_path / "prompts.jsonl")
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib)
    assert done.returncode == 0, done.stderr
    return tmp_path / "out"


def rewrite(out, change):
    """Applies change({name: (tag, values)}) to the weights of an output."""
    tensors = {name: (t.tag, t.data.copy())
               for name, t in tensor_file.read(out / WEIGHTS).items()}
    change(tensors)
    tensor_file.write(out / WEIGHTS, tensors)


# ---- verify

def test_verify_passes(out, model):
    for flags in ([], ["--base", model], ["--base", model, "--target", "vllm-ascend"],
                  ["--target", "sglang"]):
        done = run_tare("verify", out, *flags)
        assert done.returncode == 0, done.stdout + done.stderr


def test_verify_json(out):
    report = json.loads(run_tare("verify", out, "--json").stdout)
    assert report["layout"] == "ascendv1" and report["failures"] == 0


MODULE = "model.layers.1.mlp.gate_proj"


def drop(name):
    return lambda t: t.pop(f"{MODULE}.{name}")


def change(name, values):
    def apply(tensors):
        tag, x = tensors[f"{MODULE}.{name}"]
        tensors[f"{MODULE}.{name}"] = (tag, values(x))
    return apply


def spoil_last(x, value):
    x.flat[-1] = value
    return x


DAMAGE = {  # rule of the output specification, section 9: what breaks it
    "missing tensor": (4, drop("deq_scale")),
    "shape": (6, change("weight_scale", lambda x: x.reshape(-1))),
    "scale of zero": (8, change("weight_scale", lambda x: spoil_last(x, 0))),
    "scale not a BF16 number": (8, change("input_scale", lambda x: x * 1.0001)),
    "offset with a fraction": (9, change("input_offset", lambda x: x + 0.5)),
    "deq_scale": (10, change("deq_scale", lambda x: spoil_last(x, x.flat[-1] * 2))),
    "quant_bias": (11, change("quant_bias", lambda x: spoil_last(x, x.flat[-1] + 1))),
    "integer of -128": (12, change("weight", lambda x: spoil_last(x, -128))),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_verify_finds_damage(name, out):
    rule, damage = DAMAGE[name]
    rewrite(out, damage)
    done = run_tare("verify", out)
    assert done.returncode == 1
    assert MODULE in done.stdout and str(rule) in done.stdout


def test_verify_finds_a_split_group(out):
    rewrite(out, change("input_scale", lambda x: x * 2))
    done = run_tare("verify", out)
    assert done.returncode == 1 and MODULE in done.stdout


def test_verify_finds_another_base(out, tmp_path):
    other = tiny.write_checkpoint(tmp_path / "other", tiny.make_tensors(seed=1))
    assert run_tare("verify", out, "--base", other).returncode == 1


def test_verify_finds_truncation(out):
    path = out / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])
    done = run_tare("verify", out)
    assert done.returncode == 1 and WEIGHTS in done.stdout + done.stderr


def test_verify_finds_a_null_in_the_description(out):
    path = out / "quant_model_description.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({**text, "fa_quant_type": None}))
    done = run_tare("verify", out)
    assert done.returncode == 1 and "fa_quant_type" in done.stdout


def test_verify_finds_a_leftover_shard(out):
    tensor_file.write(out / "model.safetensors", {"a": ("F32", [1.0])})
    done = run_tare("verify", out)
    assert done.returncode == 1 and "model.safetensors" in done.stdout


# ---- inspect

def test_inspect(out, model):
    done = run_tare("inspect", model)
    assert done.returncode == 0 and "llama" in done.stdout and "BF16" in done.stdout
    done = run_tare("inspect", out)
    assert done.returncode == 0 and "W8A8" in done.stdout and "FLOAT" in done.stdout
    done = run_tare("inspect", out / WEIGHTS)
    assert done.returncode == 0 and "model.layers.0.mlp.up_proj.weight" in done.stdout


def test_inspect_json(out, model):
    for path in (model, out, out / WEIGHTS):
        done = run_tare("inspect", path, "--json")
        assert done.returncode == 0 and isinstance(json.loads(done.stdout), dict)


def test_inspect_of_hostile_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 63) + b"{}")
    done = run_tare("inspect", path)
    assert done.returncode == 1 and "x.safetensors" in done.stderr


# ---- tokenize

def test_tokenize(model, tmp_path):
    reference = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompts = [*tiny.PROMPTS, "<|begin|>the end<|end|>", "that this th"]
    text = tiny.write_prompts(tmp_path / "t.jsonl", prompts)
    done = run_tare("tokenize", model, "--text", text)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        reference.encode(p).ids for p in prompts]


def test_tokenize_lines_of_text(model, tmp_path):
    reference = Tokenizer.from_file(str(model / "tokenizer.json"))
    lines = ["the first", "  indented", "最后一行"]
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = run_tare("tokenize", model, "--text", tmp_path / "t.txt")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        reference.encode(line).ids for line in lines]


# ---- help and version

COMMANDS = ("quantize", "verify", "inspect", "tokenize")


def test_version():
    done = run_tare("--version")
    assert done.returncode == 0 and "0.1.0" in done.stdout
    assert "VERSION 0.1.0" in (ROOT / "CMakeLists.txt").read_text()


@pytest.mark.parametrize("args", [["help"], ["--help"]])
def test_help(args):
    done = run_tare(*args)
    assert done.returncode == 0 and not done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command):
    long, short = run_tare("help", command), run_tare(command, "--help")
    assert long.returncode == short.returncode == 0
    assert long.stdout == short.stdout and command in long.stdout


def test_help_names_every_flag():
    text = run_tare("help", "quantize").stdout
    for flag in ("--out", "--calib", "--recipe", "--samples", "--max-length", "--dtype",
                 "--scheme", "--mix", "--act-method", "--mm-tensor", "--pr", "--seed", "--disable-names",
                 "--disable-level", "--no-disable-last-linear", "--save", "--part-file-size",
                 "--anti-method", "--disable-anti-names", "--alpha", "--beta", "--fa-quant", "--fa-amp",
                 "--kv-cache", "--mtp",
                 "--compute", "--compat", "--threads", "--overwrite", "--no-verify", "--json"):
        assert flag in text, flag
    assert "--cpu" not in text  # for tests

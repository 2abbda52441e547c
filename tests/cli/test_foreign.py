"""Files of other kinds than they should be, made by the libraries whose formats they are: the message
says what the file is. And what stands behind the first --samples, which is not read."""
import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile

import numpy as np
import pytest
import tiny
from conftest import run_tare

PROMPTS = "".join(json.dumps({"prompt": p}) + "\n" for p in tiny.PROMPTS)


def archive(kind):
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as z:
            z.writestr("prompts.jsonl", PROMPTS)
    elif kind == "tar":
        with tarfile.open(fileobj=out, mode="w") as t:
            t.addfile(tarfile.TarInfo("prompts.jsonl"))
    elif kind == "torch":  # what torch.save writes first
        with zipfile.ZipFile(out, "w") as z:
            z.writestr("pytorch_model/data.pkl", pickle.dumps({}))
    else:
        np.savez(out, a=np.arange(3))
    return out.getvalue()


def database(folder):
    with sqlite3.connect(folder / "made.db") as db:
        db.execute("create table prompts (text)")
    return (folder / "made.db").read_bytes()


POINTER = ("version https://git-lfs.github.com/spec/v1\n"
           "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
           "size 269060552\n").encode()
KINDS = {
    "git lfs pull": lambda f: POINTER,
    "HTML": lambda f: b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
    "token": lambda f: b"Entry not found",
    "gzip": lambda f: gzip.compress(PROMPTS.encode()),
    "bzip2": lambda f: bz2.compress(PROMPTS.encode()),
    " xz": lambda f: lzma.compress(PROMPTS.encode()),
    "zip archive": lambda f: archive("zip"),
    "tar archive": lambda f: archive("tar"),
    "npz": lambda f: archive("npz"),
    "PyTorch": lambda f: archive("torch"),
    "pickle": lambda f: pickle.dumps({"a": [1, 2]}),
    "SQLite": database,
    "parquet": lambda f: b"PAR1\x15\x04\x15\x10PAR1",
    "GGUF": lambda f: b"GGUF\x03\x00\x00\x00" + bytes(64),
    "UTF-16": lambda f: PROMPTS.encode("utf-16"),
    "UTF-16 ": lambda f: PROMPTS.encode("utf-16-be"),
    "UTF-32": lambda f: PROMPTS.encode("utf-32"),
    "UTF-32 ": lambda f: PROMPTS.encode("utf-32-le"),
    "zeros": lambda f: bytes(10000),
}


@pytest.fixture
def model(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model")


def refused(done, path, kind):
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert f"{path}: this is " in message and kind.rstrip() in message, message


@pytest.mark.parametrize("kind", KINDS)
def test_weights_config_tokenizer(kind, model, tmp_path):
    content = KINDS[kind](tmp_path)
    prompts = tiny.write_prompts(tmp_path / "p.jsonl")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        whole = (model / name).read_bytes()
        (model / name).write_bytes(content)
        done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", prompts)
        refused(done, model / name, kind)
        (model / name).write_bytes(whole)
    (model / "model.safetensors.index.json").write_bytes(content)
    (model / "model.safetensors").unlink()
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", prompts)
    refused(done, model / "model.safetensors.index.json", kind)


# A page of a server is text, and may be meant as prompts.
@pytest.mark.parametrize("name, kind", [
    (name, kind) for name in ("p.jsonl", "p.json", "p.txt", "r.yaml") for kind in KINDS
    if name != "p.txt" or kind not in ("HTML", "token")])
def test_prompts_and_recipes(name, kind, model, tmp_path):
    (tmp_path / name).write_bytes(KINDS[kind](tmp_path))
    if name == "r.yaml":
        done = run_tare("quantize", model, "--out", tmp_path / "out", "--recipe", tmp_path / name)
    else:
        done = run_tare("tokenize", model, "--text", tmp_path / name)
    refused(done, tmp_path / name, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [[], ["--skip-bad"]])
def test_sets(kind, skip, tmp_path):
    """JSON lines, and CSV files of mmlu with their list of subjects."""
    content = KINDS[kind](tmp_path)
    (tmp_path / "lines.jsonl").write_bytes(content)
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    (tmp_path / "mmlu" / "test" / "law_test.csv").write_bytes(content)
    mapping = tmp_path / "mmlu" / "subject_mapping.json"
    for name, path, file in (("boolq", "lines.jsonl", tmp_path / "lines.jsonl"),
                             ("mmlu", "mmlu", tmp_path / "mmlu" / "test" / "law_test.csv"),
                             ("mmlu", "mmlu", mapping)):
        if file == mapping:
            mapping.write_bytes(content)
        config = {"configurations": [{"dataset_name": name, "dataset_path": str(tmp_path / path)}]}
        (tmp_path / "mix.json").write_text(json.dumps(config))
        done = run_tare("calib", "--config", tmp_path / "mix.json", "--size", f"{name}=1",
                        "--out", tmp_path / "out.json", *skip)
        refused(done, file, kind)
    (tmp_path / "mix.json").write_bytes(content)
    done = run_tare("calib", "--config", tmp_path / "mix.json", "--size", "mmlu=1",
                    "--out", tmp_path / "out.json")
    refused(done, tmp_path / "mix.json", kind)


# ---- byte order marks


@pytest.mark.parametrize("name, text", [("p.jsonl", PROMPTS), ("p.txt", "The ferry\nx\n"),
                                        ("p.json", json.dumps(tiny.PROMPTS))])
def test_prompts_may_begin_with_a_mark(name, text, model, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    without = run_tare("tokenize", model, "--text", tmp_path / name)
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    done = run_tare("tokenize", model, "--text", tmp_path / name)
    assert done.returncode == 0 and without.stdout and done.stdout == without.stdout


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_json_of_a_checkpoint_may_not(name, model, tmp_path):
    """Nor does json.load, and so transformers, take it."""
    text = (model / name).read_text()
    (model / name).write_bytes(text.encode("utf-8-sig"))
    with pytest.raises(json.JSONDecodeError):
        json.loads((model / name).read_text())
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib",
                    tiny.write_prompts(tmp_path / "p.jsonl"))
    assert done.returncode != 0 and "byte order mark; save it as UTF-8 without one" in done.stderr


# ---- the first --samples


@pytest.mark.parametrize("name, good, rest", [
    ("p.jsonl", PROMPTS, "{broken\n\xff"), ("p.txt", "a b\nc\n", "\xff"),
    ("p.json", json.dumps(tiny.PROMPTS)[:-1], ", {broken"),
    ("ids.json", "[[1, 2], [3]", ", [-1], [99999999999]"),
    ("mix_dataset.json", json.dumps([{"prompt": p, "ans": 1} for p in tiny.PROMPTS])[:-1],
     ', {"prompt": ')])
def test_what_is_not_taken_is_not_read(name, good, rest, model, tmp_path):
    path = tmp_path / name
    path.write_bytes(good.encode() + rest.encode("latin-1"))
    arguments = ["quantize", model, "--calib", path, "--json"]
    done = run_tare(*arguments, "--out", tmp_path / "out", "--samples", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 2
    assert run_tare(*arguments, "--out", tmp_path / "all").returncode != 0

"""What is known before the first layer is said before the first layer, by --dry-run too: files that
cannot be copied, rules of verify that names and shapes break. And what can be followed is followed:
model folders made of links. Limits of the process that holds the run.
"""
import json
import resource
import shutil
import signal
import subprocess

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import TARE_BIN, output_files, run_tare

SAVES = ["ascendv1", "safe_tensor", "numpy", "compressed-tensors", "ascendv1,safe_tensor,numpy"]


@pytest.fixture
def ids(tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps([[1, 2, 3, 4], [5, 6, 7]]))
    return tmp_path / "ids.json"


def quantize(model, ids, out, *flags):
    return run_tare("quantize", model, "--out", out, "--calib", ids, *flags)


def dry_run(model, ids, *flags):
    return run_tare("quantize", model, "--calib", ids, "--dry-run", "--no-probe", *flags)


def assert_refused_early(model, ids, out, words, *flags):
    """By the plan and by the run, in the same words, with nothing computed and nothing left."""
    for done in (dry_run(model, ids, *flags), quantize(model, ids, out, *flags)):
        assert done.returncode == 1 and words in done.stderr, done.stderr
        assert "calibrate" not in done.stderr
        assert not out.exists()


# ---- Links

def linked(model, folder, link):
    """The model as links, made by `link(link name, real file)`."""
    folder.mkdir()
    for path in model.iterdir():
        link(folder / path.name, path)
    return folder


def hugging_face_cache(model, folder):
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(model.iterdir()):
        shutil.copy(path, blobs / f"b{i}")
        (snapshot / path.name).symlink_to(f"../../blobs/b{i}")
    return snapshot


def mounted_volume(model, folder):
    """As Kubernetes mounts a ConfigMap: name -> ..data/name, ..data -> ..2024_01_01."""
    shutil.copytree(model, folder / "..2024_01_01")
    (folder / "..data").symlink_to("..2024_01_01")
    for path in model.iterdir():
        (folder / path.name).symlink_to(f"..data/{path.name}")
    return folder


@pytest.mark.parametrize("make", [
    hugging_face_cache, mounted_volume,
    lambda model, folder: linked(model, folder, lambda a, b: a.symlink_to(b)),
    lambda model, folder: (folder.symlink_to(model), folder)[1],
], ids=["cache", "volume", "links", "folder"])
def test_links_are_followed(make, tmp_path, ids):
    model = tiny.write_checkpoint(tmp_path / "model")
    (model / "generation_config.json").write_text("{}")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert quantize(model, ids, tmp_path / "plain").returncode == 0
    done = quantize(make(model, tmp_path / "linked"), ids, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert output_files(tmp_path / "out") == output_files(tmp_path / "plain")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_symlink()]


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "vocab.txt",
                                  "additional_chat_templates/rag.jinja"])
@pytest.mark.parametrize("target, why", [("nowhere", "a link that leads nowhere"),
                                         ("loop", "a link that leads in a circle")])
def test_a_broken_link_is_refused_by_name(name, target, why, tmp_path, ids):
    model = tiny.write_checkpoint(tmp_path / "model")
    path = model / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(path.name if target == "loop" else target)
    assert_refused_early(model, ids, tmp_path / "out", f"{name}: {why}")


@pytest.mark.parametrize("content, words", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "Git LFS pointer"),
    (b"<!doctype html><html><title>Sign in</title></html>", "page"),
    (b'{"eos_token_id": 257,', "generation_config.json")])
def test_a_side_file_that_is_no_json_is_refused(content, words, tmp_path, ids):
    tiny.write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_bytes(content)
    assert_refused_early(tmp_path / "model", ids, tmp_path / "out", words)


def test_templates_are_copied(tmp_path, ids):
    model = tiny.write_checkpoint(tmp_path / "model")
    folder = model / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text("{{ documents }}")
    (tmp_path / "elsewhere").write_text("{{ tools }}")
    (folder / "tool_use.jinja").symlink_to(tmp_path / "elsewhere")
    (folder / "run.py").write_text("raise SystemExit")
    out = tmp_path / "out"
    for flags in ([], ["--overwrite"], ["--overwrite", "--save", "ascendv1,compressed-tensors"]):
        done = quantize(model, ids, out, *flags)
        assert done.returncode == 0, done.stderr
        assert "additional_chat_templates/run.py" in done.stderr
        for layout in [out] if len(flags) < 3 else [out / "ascendv1", out / "compressed-tensors"]:
            copied = layout / "additional_chat_templates"
            assert {p.name: p.read_text() for p in copied.iterdir()} == {
                "rag.jinja": "{{ documents }}", "tool_use.jinja": "{{ tools }}"}
    assert not (out / ".tare").exists()


def test_verify_counts_what_is_missing(tmp_path, ids):
    model = tiny.write_checkpoint(tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("x")
    (tmp_path / "real").write_bytes((model / "tokenizer.json").read_bytes())
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").symlink_to("../real")
    out = tmp_path / "out"
    assert quantize(model, ids, out).returncode == 0
    assert run_tare("verify", out, "--base", model).returncode == 0
    for name in ("tokenizer.json", "additional_chat_templates/rag.jinja"):
        kept = (out / name).read_bytes()
        (out / name).unlink()
        done = run_tare("verify", out, "--base", model)
        assert done.returncode == 1
        assert f"failure: rule 25: {name}: found no such file" in done.stdout
        (out / name).write_bytes(kept)
    # What the base itself has lost is said, and is no fault of the output.
    (out / "tokenizer.json").unlink()
    (tmp_path / "real").unlink()
    done = run_tare("verify", out, "--base", model)
    assert done.returncode == 0
    assert "warning: rule 25: tokenizer.json: found no such file; in the base: a link" in done.stdout


# ---- Rules that names, dtypes and shapes decide

@pytest.mark.parametrize("flags, words", [
    (["--save", "compressed-tensors"], "compressed-tensors cannot hold the biases"),
    (["--disable-names", "*.up_proj,*.gate_proj"], "model.layers.0.mlp.up_proj"),
    (["--scheme", "w8a8_mix"], "model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj"),
])
def test_biases_without_a_place(flags, words, tmp_path, ids):
    """m4's shift gives biases to linears of Qwen3. Engines would drop those of float ones and, in
    prefill, of W8A8_MIX."""
    model = tmp_path / "model"
    tensors = tiny.make_tensors()
    for i in range(2):
        for name in "qk":
            tensors[f"model.layers.{i}.self_attn.{name}_norm.weight"] = ("BF16",
                                                                         np.ones(8, np.float32))
    tiny.write_checkpoint(model, tensors, model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    flags = ["--anti-method", "m4", *flags]
    for done in (dry_run(model, ids, *flags), quantize(model, ids, tmp_path / "out", *flags)):
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert "calibrate" not in done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("flags", [[], ["--a-bit", 16], ["--compat", "msmodelslim"],
                                   ["--disable-level", "L2"], ["--disable-names", "*"]])
def test_good_outputs_pass_the_rehearsal(save, flags, model, ids):
    if save == "compressed-tensors" and "--compat" in flags:
        flags = []
    done = dry_run(model, ids, "--save", save, *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("amp", [0, 1, 2])
@pytest.mark.parametrize("save", ["ascendv1", "safe_tensor,numpy"])
def test_attention_passes_the_rehearsal(save, amp, model, ids):
    done = dry_run(model, ids, "--fa-quant", "--fa-amp", amp, "--save", save)
    assert done.returncode == 0, done.stderr


def test_warnings_are_given_once(tmp_path, ids):
    model = tiny.write_checkpoint(tmp_path / "model", auto_map={"AutoModel": "modeling_x.Model"})
    (model / "modeling_x.py").write_text("")
    for done in (dry_run(model, ids), quantize(model, ids, tmp_path / "out")):
        assert done.returncode == 0
        assert done.stderr.count("auto_map is dropped") == 1
        assert done.stderr.count("modeling_x.py") == 1


# ---- Limits of the process

def test_a_limit_of_file_sizes_is_an_error(tmp_path, model, ids):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_FSIZE, (10240, 10240))

    done = subprocess.run([TARE_BIN, "quantize", model, "--out", tmp_path / "out", "--calib", ids],
                          capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert "File too large" in done.stderr and "ulimit -f" in done.stderr
    assert not (tmp_path / "out").exists()


def test_many_shards_with_a_low_soft_limit_of_open_files(tmp_path, ids):
    """One file a tensor: more than the soft limit, fewer than the hard one."""
    model = tmp_path / "model"
    tensors = tiny.make_tensors()
    tiny.write_checkpoint(model, tensors)
    (model / "model.safetensors").unlink()
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items(), 1):
        shard = f"model-{i:05}-of-{len(tensors):05}.safetensors"
        tensor_file.write(model / shard, {name: tensor})
        weight_map[name] = shard
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = subprocess.run([TARE_BIN, "quantize", model, "--out", tmp_path / "out", "--calib", ids],
                          capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, hard)))
    assert done.returncode == 0, done.stderr

"""`--rotate` from outside: what it goes with, what it is refused with, and that the same bytes come out of
every way to run it. (That models compute the same: tests/golden/test_rotated_logits.py.)"""
import json
import re
import shutil

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import GOLDEN, output_files, run_tare
from test_experts import kill_at, many_experts
from test_families import FAMILIES

def model_of(name):
    return GOLDEN / name / "model"


def calib_of(name):
    own = GOLDEN / name / "calib_ids.json"
    return own if own.exists() else GOLDEN / "calib_ids.json"


def run(model, out, *flags):
    """A number may come first: the seed."""
    return run_tare("quantize", model, "--out", out, "--dtype", "bfloat16", "--rotate", *flags)


def quantize(model, out, *flags):
    done = run(model, out, *flags)
    assert done.returncode == 0, done.stderr
    return done


SCHEMES = {"static": [], "smoothed": ["--anti-method", "m4", "--save", "safe_tensor"],
           "dynamic": ["--scheme", "w8a8_dynamic"], "weights": ["--scheme", "w8a16"],
           "scores": ["--act-method", "3", "--disable-level", "L2", "--fa-quant"]}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "mixtral", "deepseek_v3"])
def test_the_same_bytes(name, scheme, tmp_path):
    """Threads, the smallest budget, and an earlier run's statistics; and verify against the source."""
    flags = [*SCHEMES[scheme], *([] if scheme in ("dynamic", "weights") else ["--calib", calib_of(name)])]
    quantize(model_of(name), tmp_path / "one", *flags, "--threads", 1)
    wanted = output_files(tmp_path / "one")
    quantize(model_of(name), tmp_path / "two", *flags, "--threads", 2)
    assert output_files(tmp_path / "two") == wanted
    refused = run(model_of(name), tmp_path / "refused", *flags, "--max-memory", "cpu=9MiB")
    smallest, = re.findall(r"the smallest budget that works here is (cpu=\d+MiB)", refused.stderr)
    quantize(model_of(name), tmp_path / "small", *flags, "--max-memory", smallest)
    assert output_files(tmp_path / "small") == wanted
    done = run_tare("verify", tmp_path / "one", "--base", model_of(name), "--json")
    assert json.loads(done.stdout)["failures"] == 0 and done.returncode == 0
    if "--calib" in flags:
        done = run_tare("retype", tmp_path / "one", "--base", model_of(name), "--out", tmp_path / "again")
        assert done.returncode == 0, done.stderr
        assert output_files(tmp_path / "again", record=False) == output_files(tmp_path / "one", record=False)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["qwen2", "mixtral", "deepseek_v3", "deepseek_v3_fp8"])
def test_plan(name, scheme, tmp_path):
    """The probe takes rows of weights as they are stored; the means' pass is counted."""
    calibrates = scheme not in ("dynamic", "weights")
    flags = [*SCHEMES[scheme], *(["--calib", calib_of(name)] if calibrates else [])]
    passes = []
    for rotate in ("--rotate", "--no-rotate"):
        done = run_tare("quantize", model_of(name), "--out", tmp_path / "out", "--dtype", "bfloat16", *flags,
                        rotate, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)
        passes.append(plan["passes"])
        assert plan["seconds"] > 0
    assert passes[0] == passes[1] + calibrates


def test_fp8_is_its_decoded_twin(tmp_path):
    found = []
    for form in ("model", "model_bf16"):
        quantize(GOLDEN / "deepseek_v3_fp8" / form, tmp_path / form, "--calib", calib_of("deepseek_v3_fp8"))
        found.append(output_files(tmp_path / form, record=False))
    assert found[0] == found[1]


def test_seeds(tmp_path):
    outputs = {}
    for seed in ([], ["0"], ["1"]):
        out = tmp_path / ("seed" + "".join(seed))
        quantize(model_of("qwen2"), out, *seed, "--scheme", "w8a8_dynamic")
        outputs["".join(seed)] = output_files(out)
    assert outputs[""] == outputs["0"] and outputs["0"] != outputs["1"]
    recipe = json.loads((tmp_path / "seed1" / "tare_run.json").read_text())["recipe"]
    assert recipe["rotation"] == {"seed": 1, "r1": True, "r2": True, "align": True, "flips": True}


@pytest.mark.parametrize("scheme", [[], ["--no-disable-last-linear"]])
def test_a_tied_head_gets_a_weight(scheme, tmp_path, calib):
    """The embedding has no norm in it, the head has: they tie no more."""
    model = tiny.write_checkpoint(tmp_path / "model")
    quantize(model, tmp_path / "out", "--calib", calib, *scheme)
    tensors = tensor_file.read_folder(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert tensors["lm_head.weight"].tag == ("I8" if scheme else "BF16")
    done = run_tare("verify", tmp_path / "out", "--base", model)
    assert done.returncode == 0, done.stdout


def rewrite(path, change):
    """A safetensors file with `change` made to its header, and to its data behind the header."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = change(json.loads(data[8:8 + size]), bytearray(data[8 + size:]))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_verify_sees_another_head(tmp_path):
    """The base has no weight of that name."""
    model = tiny.write_checkpoint(tmp_path / "model")
    quantize(model, tmp_path / "out", "--scheme", "w8a8_dynamic")

    def flip(header, body):
        body[header["lm_head.weight"]["data_offsets"][0] + 1] ^= 1
        return header, body
    rewrite(next((tmp_path / "out").glob("*.safetensors")), flip)
    done = run_tare("verify", tmp_path / "out", "--base", model, "--json")
    assert [(f["rule"], f["tensor"]) for f in json.loads(done.stdout)["findings"]] == [(14, "lm_head.weight")]


@pytest.mark.parametrize("lacking", ["file", "tensor", "number"])
def test_verify_names_means_that_are_gone(lacking, tmp_path):
    """One failure instead of all values; the other rules go on."""
    quantize(model_of("qwen2"), tmp_path / "out", "--calib", calib_of("qwen2"))
    path = tmp_path / "out" / "tare" / "tare_stats.safetensors"
    name = "model.layers.1.input_layernorm.weight.rotated_mean"

    def spoil(header, body):
        at = header[name]["data_offsets"][0]
        body[at:at + 4] = b"\0\0\xc0\x7f"
        if lacking == "tensor":
            header["other"] = header.pop(name)
        return header, body
    if lacking == "file":
        path.unlink()
    else:
        rewrite(path, spoil)
    done = run_tare("verify", tmp_path / "out", "--base", model_of("qwen2"), "--json")
    named = "tare/tare_stats.safetensors" if lacking == "file" else name
    found = [(f["rule"], f["tensor"]) for f in json.loads(done.stdout)["findings"]]
    assert done.returncode == 1 and found == [(14, named)], (done.stdout, done.stderr)


def test_verify_sees_another_rotation(tmp_path):
    """What tare_run.json says is what is compared with."""
    quantize(model_of("qwen2"), tmp_path / "out", "--scheme", "w8a8_dynamic")
    record = tmp_path / "out" / "tare_run.json"
    record.write_text(record.read_text().replace('"rotation": {"seed": 0', '"rotation": {"seed": 1'))
    done = run_tare("verify", tmp_path / "out", "--base", model_of("qwen2"), "--json")
    rules = {f["rule"] for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1 and {14, 15} <= rules


@pytest.mark.parametrize("scheme", ["", "quant: {scheme: w8a16}\nfallback: {disable_level: L1}\n"])
def test_statistics_are_of_one_rotation(scheme, tmp_path):
    """Scores too, by which a run of weights alone falls back."""
    quantize(model_of("qwen2"), tmp_path / "out", "--calib", calib_of("qwen2"), "--disable-level", "L1")
    recipe = tmp_path / "plain.yaml"
    recipe.write_text("rotation: false\n" + scheme)
    done = run_tare("retype", tmp_path / "out", "--base", model_of("qwen2"), "--out", tmp_path / "b",
                    "--recipe", recipe)
    assert done.returncode == 2 and "rotation.seed: the statistics in" in done.stderr


@pytest.mark.parametrize("scheme", ["dynamic", "static", "scores"])
def test_resume(scheme, calib, tmp_path):
    """A run that was killed behind a layer goes on to the same bytes; another seed is another run."""
    model = many_experts(tmp_path / "model")
    flags = [*SCHEMES[scheme], *([] if scheme == "dynamic" else ["--calib", calib]), "--checkpoint-every", 1, "--rotate", 9]
    quantize(model, tmp_path / "whole", *flags)
    lines = len(quantize(model, tmp_path / "lines", *flags, "--verbose").stderr.splitlines())
    out = tmp_path / "out"
    for _ in range(20):
        shutil.rmtree(out, ignore_errors=True)
        if kill_at(model, out, lines // 2, "--dtype", "bfloat16", *flags):
            break
    refused = run(model, out, "8", *flags[:-2], "--resume")
    assert refused.returncode == 2 and "recipe" in refused.stderr, refused.stderr
    quantize(model, out, *flags, "--resume")
    assert output_files(out) == output_files(tmp_path / "whole")


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, library, tmp_path):
    """Those that norm what they add to the stream are refused, by name; others compute the same."""
    changes, make = FAMILIES[family]
    wide = {name: ("F32", x) for name, (_, x) in make().items()}
    model = tiny.write_checkpoint(tmp_path / "model", wide, **changes | {"torch_dtype": "float32"})
    out = tmp_path / "out"
    done = run_tare("quantize", model, "--out", out, "--rotate", "--scheme", "w8a8_dynamic", "--mix",
                    "*=float", "--no-verify")
    if family in ("gemma2", "gemma3_text", "glm4"):
        assert done.returncode == 2 and not out.exists()
        assert f"rotation: {family} models cannot be rotated: it norms what it adds" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    weights, = out.glob("quant_model_weights*.safetensors")
    weights.rename(out / "model.safetensors")
    for path in out.glob("quant_model*"):
        path.unlink()
    ids = list(range(3, 90, 2))
    with library.model(model) as a, library.model(out) as b:
        expected = a.logits(ids)
        assert np.abs(b.logits(ids) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("flags,words", [
    (["--rotate=x"], ["rotation.seed", "not a whole number"]),
    (["--rotate=-1"], ["rotation.seed", "not a whole number"]),
    (["--rotate", "--compat", "msmodelslim", "--scheme", "w8a8"], ["rotation: msModelSlim's classes"]),
])
def test_refused(flags, words, tmp_path):
    done = run_tare("quantize", model_of("qwen2"), "--out", tmp_path / "out", "--scheme", "w8a8_dynamic",
                    *flags)
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mtp", ["float", "mix"])
def test_mtp_layers_are_not_rotated(mtp, tmp_path):
    done = run(model_of("deepseek_v3_mtp"), tmp_path / "out", "--scheme", "w8a8_dynamic", "--mtp", mtp)
    assert done.returncode == 2 and "MTP layers cannot be rotated" in done.stderr
    quantize(model_of("deepseek_v3_mtp"), tmp_path / "out", "--scheme", "w8a8_dynamic", "--mtp", "none")


def test_neither_part(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rotation: {r1: false, r2: false}\n")
    done = run_tare("quantize", model_of("qwen2"), "--out", tmp_path / "out", "--recipe", recipe)
    assert done.returncode == 2 and "r1 and r2 are both false" in done.stderr


def test_what_reads_the_stream_unknown(tmp_path):
    tensors = tiny.make_tensors(tiny.CONFIG)
    tensors["score.weight"] = ("BF16", np.ones((2, tiny.CONFIG["hidden_size"])))
    tensors["other.weight"] = ("BF16", np.ones((2, 3)))
    model = tiny.write_checkpoint(tmp_path / "model", tensors)
    done = quantize(model, tmp_path / "out", "--scheme", "w8a8_dynamic")
    assert "rotation: 1 unknown tensors of the size of the residual stream" in done.stderr
    assert "(first: score.weight)" in done.stderr

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


# ---- the rotation as a file

PLACE = "optional/quarot.safetensors"  # vLLM-Ascend's and msModelSlim's, as are the two names


def read_rotation(path):
    (name, tensor), = tensor_file.read(path).items()
    assert (name, tensor.tag) == ("global_rotation", "F32")
    return np.float64(tensor.data)


def named_place(out):
    """What vLLM-Ascend reads of a description."""
    optional = json.loads((out / "quant_model_description.json").read_text())["optional"]
    return optional["quarot"]["rotation_map"]["global_rotation"] if optional else None


def assert_rotates(r, model, out):
    """Orthogonal; and a row x of the embedding has become x R."""
    assert np.abs(r @ r.T - np.eye(len(r))).max() < 1e-6
    name = "model.embed_tokens.weight"
    before, after = (tensor_file.read_folder(folder)[name] for folder in (model, out))
    expected = np.float64(before.data) @ r
    half = 2.0 ** -8 if after.tag == "BF16" else 2.0 ** -24
    assert (np.abs(after.data - expected) <= half * np.abs(expected) + 1e-6).all()
    assert np.abs(after.data - before.data).max() > 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["qwen2", "deepseek_v3", "mixtral"])
def test_the_saved_rotation(name, scheme, tmp_path):
    """Beside an output, of which it changes nothing; and as part of it, which verify looks at."""
    model, out, inside = model_of(name), tmp_path / "out", tmp_path / "inside"
    calib = [] if scheme in ("dynamic", "weights") else ["--calib", calib_of(name)]
    flags = [*SCHEMES[scheme], *calib]
    quantize(model, tmp_path / "plain", *flags)
    quantize(model, out, *flags, "--save-rotation", tmp_path / "r.safetensors")
    assert output_files(out) == output_files(tmp_path / "plain")
    assert_rotates(read_rotation(tmp_path / "r.safetensors"), model, out)
    if scheme == "smoothed":  # safe_tensor
        return
    quantize(model, inside, *flags, "--save-rotation", inside / PLACE)
    assert (named_place(out), named_place(inside)) == (None, PLACE)
    assert (inside / PLACE).read_bytes() == (tmp_path / "r.safetensors").read_bytes()
    left_out = {PLACE, "quant_model_description.json"}
    assert {k: v for k, v in output_files(inside).items() if k not in left_out} == {
        k: v for k, v in output_files(out).items() if k not in left_out}
    done = run_tare("verify", inside, "--base", model)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("size", [12, 30, 48, 72])
def test_the_saved_rotation_of_sizes(size, tmp_path):
    """Powers of two times a Hadamard matrix by Paley, and where there is none a random one."""
    changes = dict(hidden_size=size, num_attention_heads=2, num_key_value_heads=1, head_dim=6)
    tensors = tiny.make_tensors({**tiny.CONFIG, **changes})
    model = tiny.write_checkpoint(tmp_path / "model", tensors, **changes)
    out, file = tmp_path / "out", tmp_path / "r.safetensors"
    quantize(model, out, "--scheme", "w8a8_dynamic", "--save-rotation", file)
    assert_rotates(read_rotation(file), model, out)


def test_saved_rotations_are_of_a_seed_and_of_samples(tmp_path):
    found = {}
    for name, flags in {"0": [], "again": ["0", "--threads", 1], "1": ["1"],
                        "fitted": ["--calib", calib_of("qwen2"), "--scheme", "w8a8"]}.items():
        file = tmp_path / f"{name}.safetensors"
        flags = [*flags, *([] if "--scheme" in flags else ["--scheme", "w8a8_dynamic"])]
        quantize(model_of("qwen2"), tmp_path / name, *flags, "--save-rotation", file)
        found[name] = file.read_bytes()
    assert found["0"] == found["again"] and len(set(found.values())) == 3
    file = tmp_path / "retyped.safetensors"
    done = run_tare("retype", tmp_path / "fitted", "--base", model_of("qwen2"),
                    "--out", tmp_path / "r", "--save-rotation", file)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == found["fitted"]


def test_several_layouts(tmp_path):
    """It lies beside the weights whose description engines read."""
    out, model = tmp_path / "out", model_of("qwen2")
    flags = ["--scheme", "w8a8_dynamic", "--save", "ascendv1,safe_tensor,compressed-tensors"]
    quantize(model, out, *flags, "--save-rotation", out / "ascendv1" / PLACE)
    assert_rotates(read_rotation(out / "ascendv1" / PLACE), model, out / "ascendv1")
    assert named_place(out / "ascendv1") == PLACE
    assert len(list(out.rglob("quarot.safetensors"))) == 1
    assert run_tare("verify", out, "--base", model).returncode == 0
    quantize(model, out, *flags, "--overwrite")
    assert not (out / "ascendv1" / "optional").exists() and named_place(out / "ascendv1") is None


@pytest.mark.parametrize("inside", [True, False])
def test_an_existing_rotation(inside, tmp_path):
    out, flags = tmp_path / "out", ["--scheme", "w8a8_dynamic"]
    file = out / PLACE if inside else tmp_path / "r.safetensors"
    quantize(model_of("qwen2"), out, *flags, "--save-rotation", file)
    before = file.read_bytes()
    done = run(model_of("qwen2"), tmp_path / "other", "1", *flags, "--save-rotation", file)
    assert done.returncode == 2 and "it exists (--overwrite replaces it)" in done.stderr
    assert file.read_bytes() == before and not (tmp_path / "other").exists()
    quantize(model_of("qwen2"), out, "1", *flags, "--save-rotation", file, "--overwrite")
    assert file.read_bytes() != before
    assert_rotates(read_rotation(file), model_of("qwen2"), out)
    assert [p.name for p in file.parent.iterdir() if ".tare" in p.name] == []


@pytest.mark.parametrize("inside", [True, False])
def test_resume_saves_the_rotation(inside, calib, tmp_path):
    model = many_experts(tmp_path / "model")
    out, whole = tmp_path / "out", tmp_path / "whole"
    flags = ["--calib", calib, "--checkpoint-every", 1, "--rotate", 9]
    files = [folder / PLACE if inside else tmp_path / f"{folder.name}.safetensors"
             for folder in (whole, out)]
    quantize(model, whole, *flags, "--save-rotation", files[0])
    lines = quantize(model, tmp_path / "lines", *flags, "--verbose").stderr.splitlines()
    layer, = (i for i, line in enumerate(lines) if line.startswith("calibrate: layer 2 "))
    flags += ["--save-rotation", files[1]]
    for _ in range(20):
        shutil.rmtree(out, ignore_errors=True)
        files[1].unlink(missing_ok=True)
        if kill_at(model, out, layer, "--dtype", "bfloat16", *flags) and not files[1].exists():
            break
    assert not files[1].exists()
    quantize(model, out, *flags, "--resume")
    assert output_files(out) == output_files(whole)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert_rotates(read_rotation(files[1]), model, out)
    done = run(model, out, *flags, "--resume")  # finished: nothing to do, or too late
    assert done.returncode == 0, done.stderr
    done = run(model, out, *flags[:-2], "--resume", "--save-rotation", tmp_path / "late")
    assert done.returncode == 2 and "is finished, without" in done.stderr
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run", "--no-probe"]])
@pytest.mark.parametrize("file,flags,words", [
    ("r", ["--no-rotate"], "the residual stream is not rotated"),
    ("r", ["--recipe", "RECIPE"], "the residual stream is not rotated"),
    ("none/r", [], "folder 'TMP/none': No such file or directory"),
    ("TMP", [], "it is a folder"), ("file/r", [], "Not a directory"),
    ("", [], "cannot"),
    ("out/r.safetensors", [], "in the output folder it is optional/quarot.safetensors"),
    ("out/" + PLACE, ["--save", "safe_tensor"], "beside the weights of ascendv1"),
    ("model/r.safetensors", [], "it lies in the model folder"),
])
def test_rotations_that_cannot_be_saved(file, flags, words, dry, tmp_path):
    model, out = shutil.copytree(model_of("qwen2"), tmp_path / "model"), tmp_path / "out"
    (tmp_path / "file").write_text("")
    (tmp_path / "RECIPE").write_text("rotation: {r1: false}\n")
    if dry and ("out/" in file or "model/" in file):
        return  # a dry run looks at no output folder
    flags = [tmp_path / flag if flag == "RECIPE" else flag for flag in flags]
    rotate = [] if "--no-rotate" in flags or "--recipe" in flags else ["--rotate"]
    file = tmp_path if file == "TMP" else file and tmp_path / file
    done = run_tare("quantize", model, "--out", out, "--scheme", "w8a8_dynamic", *rotate, *flags,
                    *dry, "--save-rotation", file)
    assert done.returncode == 2 and words.replace("TMP", str(tmp_path)) in done.stderr, done.stderr
    assert not out.exists()


def rename_tensor(header, body):
    return {"other": header["global_rotation"]}, body


def reshape_tensor(header, body):
    return {"global_rotation": {**header["global_rotation"], "shape": [32, 128]}}, body


def flip_sign(header, body):
    body[3] ^= 0x80
    return header, body


@pytest.mark.parametrize("spoil,rule,words", [
    (lambda path: path.unlink(), 3, "No such file"),
    (lambda path: path.write_bytes(path.read_bytes()[:-8]), 3, ""),
    (lambda path: rewrite(path, rename_tensor), 3, "no such tensor"),
    (lambda path: rewrite(path, reshape_tensor), 3, "another shape"),
    (lambda path: rewrite(path, flip_sign), 14, "another one"),
], ids=["gone", "short", "name", "shape", "value"])
def test_verify_looks_at_the_rotation(spoil, rule, words, tmp_path):
    out, model = tmp_path / "out", model_of("qwen2")
    quantize(model, out, "--scheme", "w8a8_dynamic", "--save-rotation", out / PLACE)
    spoil(out / PLACE)
    done = run_tare("verify", out, "--base", model, "--json")
    finding, = [f for f in json.loads(done.stdout)["findings"] if f["rule"] != 25]
    assert done.returncode == 1 and (finding["rule"], finding["tensor"]) == (rule, PLACE)
    assert words in finding["found"]


@pytest.mark.parametrize("name", ["../r.safetensors", "/r.safetensors", "", 1])
def test_verify_stays_in_the_folder(name, tmp_path):
    out = tmp_path / "out"
    quantize(model_of("qwen2"), out, "--scheme", "w8a8_dynamic", "--save-rotation", out / PLACE)
    path = out / "quant_model_description.json"
    path.write_text(path.read_text().replace(json.dumps(PLACE), json.dumps(name)))
    done = run_tare("verify", out, "--json")
    finding, = json.loads(done.stdout)["findings"]
    assert (finding["rule"], finding["tensor"]) == (3, "optional")

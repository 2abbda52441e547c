"""`tare quantize --kv-cache c8`: INT8 scales of keys and values in every layout. (The numbers are
judged in tests/golden/test_kv_scales.py and tests/unit/test_kv_observer.c.)"""
import json
import shutil
import signal
import subprocess

import numpy as np
import pytest
import tensor_file
import test_families
import tiny
from conftest import TARE_BIN, output_files, run_tare

C8 = ["--kv-cache", "c8"]
ATTENTIONS = [f"model.layers.{i}.self_attn" for i in range(2)]
PARTS = ["k_proj.kv_cache_scale", "k_proj.kv_cache_offset", "v_proj.kv_cache_scale",
         "v_proj.kv_cache_offset"]
THREE = ["--save", "ascendv1,safe_tensor,numpy"]
CHANNELS = 16  # 2 heads of 8


def quantize(model, calib, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--calib", calib, *flags)
    assert done.returncode == 0, done.stderr
    return done


def description(folder):
    path, = folder.glob("quant_model_description*.json")
    return json.loads(path.read_text())


def is_kv(name):
    return name.endswith((".kv_cache_scale", ".kv_cache_offset"))


@pytest.fixture(scope="module")
def outputs(model, calib, tmp_path_factory):
    """Without and with scales."""
    folder = tmp_path_factory.mktemp("kv")
    quantize(model, calib, folder / "plain", *THREE)
    done = quantize(model, calib, folder / "c8", *THREE, *C8)
    assert "head_dim" in done.stderr and "multiple of 32" in done.stderr
    return folder / "plain", folder / "c8"


@pytest.mark.parametrize("layout", ["ascendv1", "safe_tensor"])
def test_tensors_and_keys(layout, outputs):
    folder = outputs[1] / layout
    kinds, tensors = description(folder), tensor_file.read_folder(folder)
    names = [f"{a}.{part}" for a in ATTENTIONS for part in PARTS]
    assert [name for name in kinds if is_kv(name)] == names
    assert {kinds[name] for name in names} == {"C8"}
    assert kinds["kv_cache_type"] == kinds["kv_quant_type"] == "C8"
    assert "fa_quant_type" not in kinds
    keys = list(kinds)
    for name in names:  # before the tensors of the same linear
        linear = name.rsplit(".", 1)[0]
        assert keys.index(name) < min(keys.index(k) for k in keys
                                      if k.startswith(linear + ".") and not is_kv(k))
        x = tensors[name]
        assert x.tag == "BF16" and x.data.shape == (CHANNELS,)
        if name.endswith("_offset"):
            assert not x.data.any()
        else:
            assert (x.data > 0).all() and np.isfinite(x.data).all()
    done = run_tare("verify", folder)
    assert done.returncode == 0, done.stdout


def test_pairs(model, calib, tmp_path):
    """sqrt(a^2 + b^2) of what the two channels of a pair (j, j + D/2) have by themselves; values stay as they are;
    from an earlier run's statistics the same."""
    quantize(model, calib, tmp_path / "plain", *C8, "--dtype", "float32")
    quantize(model, calib, tmp_path / "pairs", *C8, "--kv-pairs", "--dtype", "float32")
    plain, pairs = (tensor_file.read_folder(tmp_path / name) for name in ("plain", "pairs"))
    for name in plain:
        before, after = plain[name].data, pairs[name].data
        if name.endswith("k_proj.kv_cache_scale"):
            both = np.sqrt(np.square(before.astype(np.float64).reshape(2, 2, 4)).sum(1, keepdims=True))
            np.testing.assert_allclose(after.reshape(2, 2, 4), np.broadcast_to(both, (2, 2, 4)), rtol=1e-6)
        else:
            assert np.array_equal(before, after), name
    done = run_tare("retype", tmp_path / "plain", "--base", model, "--out", tmp_path / "again", "--kv-pairs")
    assert done.returncode == 0, done.stderr
    assert output_files(tmp_path / "again", record=False) == output_files(tmp_path / "pairs", record=False)


@pytest.mark.parametrize("flags, message", [
    (["--kv-pairs"], "quant.kv_pairs is given, but quant.kv_cache is not"),
    ([*C8, "--kv-pairs", "--no-kv-sym", "--save", "safe_tensor"], "quant.kv_pairs goes neither with"),
    ([*C8, "--kv-pairs", "--compat", "msmodelslim"], "quant.kv_pairs goes neither with")])
def test_pairs_refused(flags, message, model, calib, tmp_path):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib, *flags)
    assert done.returncode == 2 and message in done.stderr


def test_config_for_mindie(outputs):
    def config(output, layout):
        return json.loads((outputs[output] / layout / "config.json").read_text())

    assert config(1, "safe_tensor")["quantization_config"] == {"kv_quant_type": "C8"}
    for output, layout in ((0, "safe_tensor"), (0, "ascendv1"), (1, "ascendv1")):
        assert "quantization_config" not in config(output, layout)


def test_npy_files(outputs):
    """Keys are full names; numpy has no BF16."""
    folder = outputs[1] / "safe_tensor"
    tensors = tensor_file.read_folder(folder)
    for file, end in (("kv_cache_scale.npy", "scale"), ("kv_cache_offset.npy", "offset")):
        entries = np.load(folder / file, allow_pickle=True).item()
        assert list(entries) == [f"{a}.{linear}.kv_cache_{end}" for a in ATTENTIONS
                                 for linear in ("k_proj", "v_proj")]
        for name, x in entries.items():
            assert x.dtype == np.float32
            np.testing.assert_array_equal(x, tensors[name].data)
    assert not list((outputs[0] / "safe_tensor").glob("kv_cache_*"))


def test_everything_else_is_as_without(outputs):
    plain, with_scales = (tensor_file.read_folder(folder / "ascendv1") for folder in outputs)
    assert {name for name in with_scales if not is_kv(name)} == plain.keys()
    for name, x in plain.items():
        assert x.tag == with_scales[name].tag
        np.testing.assert_array_equal(x.data, with_scales[name].data, err_msg=name)
    a, b = (description(folder / "ascendv1") for folder in outputs)
    assert a == {k: t for k, t in b.items() if not is_kv(k) and not k.startswith("kv_")}
    for npy in (outputs[0] / "safe_tensor").glob("*.npy"):
        assert npy.read_bytes() == (outputs[1] / "safe_tensor" / npy.name).read_bytes()


@pytest.mark.parametrize("flags", [
    [], ["--anti-method", "m3"], ["--anti-method", "m1", "--act-method", "3"], ["--anti-method", "m4"],
    ["--act-method", "3", "--disable-level", "L2"]], ids=lambda flags: " ".join(flags))
def test_everything_else_is_as_without_with_compat(flags, model, calib, tmp_path):
    """All prompts pass the float model then, of which smoothing and scores see what they saw."""
    flags = ["--compat", "msmodelslim", "--save", "safe_tensor", *flags]
    quantize(model, calib, tmp_path / "plain", *flags)
    quantize(model, calib, tmp_path / "c8", *flags, *C8)
    plain, ours = (tensor_file.read_folder(tmp_path / name) for name in ("plain", "c8"))
    assert {name for name in ours if not is_kv(name)} == plain.keys()
    for name, x in plain.items():
        np.testing.assert_array_equal(x.data, ours[name].data, err_msg=name)


@pytest.mark.parametrize("flags", [["--threads", 1], ["--threads", 2], ["--batch-rows", 7],
                                   ["--skip-layouts", 99], ["--no-resume"]],
                         ids=lambda flags: " ".join(map(str, flags)))
def test_the_same_bytes_however_it_runs(flags, model, calib, outputs, tmp_path):
    quantize(model, calib, tmp_path / "out", *THREE, *C8, *flags)
    assert output_files(tmp_path / "out") == output_files(outputs[1])


@pytest.mark.parametrize("more", [
    [], ["--no-kv-sym"], ["--compat", "msmodelslim"],
    ["--compat", "msmodelslim", "--anti-method", "m4", "--disable-level", "L3"]],
    ids=lambda flags: " ".join(flags))
def test_resume(more, tmp_path):
    """Killed behind the first checkpoints, the run goes on to the same bytes. Where there is a pass
    of the float model before, and compat, that is where the scales come from."""
    changes = dict(num_hidden_layers=12, hidden_size=64, intermediate_size=160, head_dim=16)
    model = tiny.write_checkpoint(tmp_path / "model", tiny.make_tensors({**tiny.CONFIG, **changes}),
                                  **changes)
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(np.random.default_rng(3).integers(0, 256, (8, 100)).tolist()))
    flags = ["--save", "safe_tensor,numpy", *C8, "--checkpoint-every", 1, "--npy-values", "numpy",
             *more]
    quantize(model, ids, tmp_path / "whole", *flags)
    out = tmp_path / "out"
    journal = out / ".tare" / "journal"
    for _ in range(10):  # a busy machine may let the run end first
        shutil.rmtree(out, ignore_errors=True)
        run = subprocess.Popen([str(TARE_BIN), "quantize", str(model), "--out", str(out), "--calib",
                                str(ids), *map(str, flags)], stderr=subprocess.PIPE)
        while run.poll() is None:
            if journal.exists() and len(journal.read_bytes().splitlines()) > 3:
                run.send_signal(signal.SIGKILL)
                break
        run.communicate()
        if run.returncode == -signal.SIGKILL:
            break
    done = quantize(model, ids, out, *flags, "--resume", "--threads", 1)
    assert "going on " in done.stderr
    assert output_files(out) == output_files(tmp_path / "whole")


def test_attentions_are_left_out_by_name(model, calib, outputs, tmp_path):
    """An attention keeps a float cache; its linears stay quantized, the other has its scales."""
    quantize(model, calib, tmp_path / "out", *C8, "--disable-names", ATTENTIONS[0])
    kinds, all_kinds = description(tmp_path / "out"), description(outputs[1] / "ascendv1")
    left = {k: t for k, t in all_kinds.items() if not (is_kv(k) and k.startswith(ATTENTIONS[0]))}
    assert kinds == left
    quantize(model, calib, tmp_path / "none", *C8, "--disable-names", "*.self_attn")
    assert not [k for k in description(tmp_path / "none") if "kv_" in k]
    assert run_tare("verify", tmp_path / "none").returncode == 0


def test_float_linears_have_scales_too(model, calib, tmp_path):
    quantize(model, calib, tmp_path / "out", *C8, "--disable-names", "*.k_proj")
    kinds = description(tmp_path / "out")
    assert kinds[ATTENTIONS[0] + ".k_proj.weight"] == "FLOAT"
    assert [k for k in kinds if is_kv(k)] == [f"{a}.{part}" for a in ATTENTIONS for part in PARTS]


@pytest.mark.parametrize("heads", [1, 4])
def test_what_vllm_ascend_takes(heads, calib, tmp_path):
    """Heads of 32, one for all queries or one each."""
    changes = dict(num_key_value_heads=heads, head_dim=32)
    model = tiny.write_checkpoint(tmp_path / "model", tiny.make_tensors({**tiny.CONFIG, **changes}),
                                  **changes)
    done = quantize(model, calib, tmp_path / "out", *C8)
    assert "head_dim" not in done.stderr
    scales = tensor_file.read_folder(tmp_path / "out")[f"{ATTENTIONS[1]}.k_proj.kv_cache_scale"]
    assert scales.data.shape == (32 * heads,)
    done = run_tare("verify", tmp_path / "out", "--target", "vllm-ascend", "--base", model)
    assert done.returncode == 0, done.stdout


def test_heads_that_vllm_ascend_does_not_take(calib, tmp_path):
    """24 channels: its kernel wants a multiple of 32. Other engines do not ask."""
    changes = dict(num_key_value_heads=1, head_dim=24)
    model = tiny.write_checkpoint(tmp_path / "model", tiny.make_tensors({**tiny.CONFIG, **changes}),
                                  **changes)
    done = quantize(model, calib, tmp_path / "out", *C8)
    assert "multiple of 32, and that of this model is 24" in done.stderr
    assert run_tare("verify", tmp_path / "out").returncode == 0
    done = run_tare("verify", tmp_path / "out", "--target", "vllm-ascend", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert {f["rule"] for f in report["findings"] if f["severity"] == "failure"} == {18}


def test_an_output_is_no_model(outputs, calib, tmp_path):
    done = run_tare("quantize", outputs[1] / "safe_tensor", "--out", tmp_path / "out", "--calib", calib)
    assert done.returncode != 0 and "msModelSlim or tare" in done.stderr


@pytest.mark.parametrize("flags,words", [
    (["--fa-quant"], "cannot be quantized at the same time"),
    (["--no-kv-sym"], "quant.kv_sym false: vLLM-Ascend"),
    (["--no-kv-sym", "--save", "ascendv1,safe_tensor"], "quant.kv_sym false: vLLM-Ascend"),
    (["--no-kv-sym", "--save", "compressed-tensors"], "cannot hold the scales of quant.kv_cache"),
    (["--a-bit", "16"], "quant.kv_cache needs the calibration"),
    (["--save", "compressed-tensors"], "cannot hold the scales of quant.kv_cache"),
    (["--save", "ascendv1,compressed-tensors"], "cannot hold the scales of quant.kv_cache"),
    (["--kv-cache", "int4"], "\"int4\" is not known; possible: none, c8"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_refused_before_any_work(flags, words, model, calib, tmp_path):
    for extra in ([], ["--dry-run", "--no-probe"]):
        done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib, *C8, *flags,
                        *extra)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert "calibrate" not in done.stderr and not (tmp_path / "out").exists()


def test_kv_sym_without_a_cache(model, calib, tmp_path):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib, "--no-kv-sym",
                    "--save", "safe_tensor")
    assert done.returncode == 2 and "quant.kv_cache is not given" in done.stderr
    quantize(model, calib, tmp_path / "out", "--kv-sym")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_offsets(dtype, model, calib, tmp_path):
    """The steps of both forms span the range: 255 of the asymmetric one with 0, 127 of the other
    the farther end. Nothing else differs."""
    flags = [*C8, "--save", "safe_tensor,numpy", "--dtype", dtype]
    quantize(model, calib, tmp_path / "sym", *flags)
    quantize(model, calib, tmp_path / "asym", *flags, "--no-kv-sym")
    sym, asym = (tensor_file.read_folder(tmp_path / form) for form in ("sym", "asym"))
    rounding = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert sym.keys() == asym.keys()
    for name, x in asym.items():
        if not is_kv(name):
            np.testing.assert_array_equal(x.data, sym[name].data, name)
    offsets = []
    for name in [name for name in asym if name.endswith(".kv_cache_scale")]:
        scale = np.float64(asym[name].data)
        offset = np.float64(asym[name.replace("_scale", "_offset")].data)
        low, high = (-128 - offset) * scale, (127 - offset) * scale
        assert (np.abs(low + high) <= 255.001 * scale).all()  # 0 is in the range
        reach = 127 * np.float64(sym[name].data)
        assert (np.abs(np.maximum(-low, high) - reach)
                <= 0.5001 * scale + 2 * rounding * reach).all()
        offsets.append(offset)
    assert np.abs(offsets).max() > 1
    for folder in ("sym", "asym"):
        done = run_tare("verify", tmp_path / folder, "--base", model)
        assert done.returncode == 0, done.stdout
    found = np.load(tmp_path / "asym" / "kv_cache_offset.npy", allow_pickle=True).item()
    for name, x in found.items():
        np.testing.assert_array_equal(x, asym[name].data)


@pytest.mark.parametrize("flags", [
    [], ["--anti-method", "m3"], ["--anti-method", "m4"], ["--act-method", "3"],
    ["--act-method", "3", "--disable-level", "L2", "--anti-method", "m1"],
    ["--scheme", "w8a8_dynamic", "--no-kv-sym"]], ids=lambda flags: " ".join(flags))
@pytest.mark.parametrize("how", [["--threads", 2], ["--batch-rows", 7], ["--skip-layouts", 99]],
                         ids=lambda flags: " ".join(map(str, flags)))
def test_compat_is_the_same_bytes_however_it_runs(flags, how, model, calib, tmp_path):
    flags = [*C8, "--compat", "msmodelslim", "--save", "safe_tensor", *flags]
    quantize(model, calib, tmp_path / "one", *flags, "--threads", 1)
    quantize(model, calib, tmp_path / "other", *flags, *how)
    assert output_files(tmp_path / "one") == output_files(tmp_path / "other")


def test_prompts_are_needed(model, tmp_path):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--scheme", "w8a8_dynamic", *C8)
    assert done.returncode == 2 and "quant.kv_cache needs calibration samples" in done.stderr


@pytest.mark.parametrize("family", sorted(test_families.FAMILIES.keys() - {"phi3"}))
def test_every_family_that_projects_them_apart(family, calib, tmp_path):
    changes, make = test_families.FAMILIES[family]
    model = tiny.write_checkpoint(tmp_path / "model", make(), **changes)
    quantize(model, calib, tmp_path / "out", *C8, "--anti-method", "m3")
    kinds = description(tmp_path / "out")
    assert [k for k in kinds if is_kv(k)] == [f"{a}.{part}" for a in ATTENTIONS for part in PARTS]
    done = run_tare("verify", tmp_path / "out", "--base", model)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("family", sorted(test_families.FAMILIES.keys() - {"phi3"}))
def test_every_family_with_compat(family, calib, tmp_path):
    """msModelSlim writes no scales where queries and keys have a norm."""
    changes, make = test_families.FAMILIES[family]
    model = tiny.write_checkpoint(tmp_path / "model", make(), **changes)
    flags = ["--calib", calib, *C8, "--compat", "msmodelslim", "--save", "safe_tensor"]
    done = run_tare("quantize", model, "--out", tmp_path / "out", *flags)
    if any(name.endswith("k_norm.weight") for name in tensor_file.read_folder(model)):
        assert done.returncode == 2 and "a norm for queries and keys" in done.stderr
        assert not (tmp_path / "out").exists()
        return
    assert done.returncode == 0, done.stderr
    kinds = description(tmp_path / "out")
    assert [k for k in kinds if is_kv(k)] == [f"{a}.{part}" for a in ATTENTIONS for part in PARTS]
    done = run_tare("verify", tmp_path / "out", "--base", model, "--compat", "msmodelslim")
    assert done.returncode == 0, done.stdout


def test_fused_projections_have_no_place(calib, tmp_path):
    """Engines look for k_proj and v_proj."""
    changes, make = test_families.FAMILIES["phi3"]
    model = tiny.write_checkpoint(tmp_path / "model", make(), **changes)
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib, *C8)
    assert done.returncode == 2 and "phi3 models have one linear" in done.stderr
    assert not (tmp_path / "out").exists()


def test_recipe(model, calib, outputs, tmp_path):
    for text, same in (("quant: {kv_cache: c8}", True), ("quant: {kv_cache: null}", False)):
        recipe = tmp_path / "r.yaml"
        recipe.write_text(text)
        out = tmp_path / f"out{same}"
        quantize(model, calib, out, *THREE, "--recipe", recipe)
        assert output_files(out) == output_files(outputs[same])
        record = json.loads((out / "ascendv1" / "tare_run.json").read_text())
        assert record["recipe"]["quant"]["kv_cache"] == ("c8" if same else "none")

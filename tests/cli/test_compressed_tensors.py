"""`--save compressed-tensors`: what vLLM and transformers load, seen from outside."""
import json
import signal
import subprocess
import time

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import TARE_BIN, output_files, run_tare

LINEARS = [f"model.layers.{i}.{name}_proj" for i in range(2) for name in (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")]
FILES = {"model-00001-of-00001.safetensors", "model.safetensors.index.json", "config.json",
         "tokenizer.json", "tokenizer_config.json", "tare_run.json"}
# Section 7 of the specification of formats, as llm-compressor writes it.
NULLS = dict.fromkeys(("actorder", "block_structure", "group_size", "scale_dtype", "zp_dtype"))
WEIGHTS = NULLS | {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel",
                   "dynamic": False, "observer": "memoryless_minmax", "observer_kwargs": {}}
ACTIVATIONS = WEIGHTS | {"symmetric": False, "strategy": "tensor", "observer": "minmax",
                         "zp_dtype": "torch.int8"}
SYMMETRIC = ACTIVATIONS | {"symmetric": True, "zp_dtype": None}


def quantization_config(ignore, format="int-quantized", activations=SYMMETRIC):
    return {"quant_method": "compressed-tensors", "quantization_status": "compressed",
            "format": format, "global_compression_ratio": None, "kv_cache_scheme": None,
            "sparsity_config": {}, "transform_config": {}, "version": "0.19.0", "ignore": ignore,
            "config_groups": {"group_0": {
                "targets": ["Linear"], "format": format, "output_activations": None,
                "weights": WEIGHTS, "input_activations": activations}}}


def quantize(model, calib, out, *flags, save="compressed-tensors"):
    done = run_tare("quantize", model, "--out", out, "--calib", calib, "--save", save, *flags)
    assert done.returncode == 0, done.stderr
    return done


def verify(out, *flags):
    done = run_tare("verify", out, "--json", *flags)
    return done.returncode, json.loads(done.stdout)


def config(out):
    return json.loads((out / "config.json").read_text())


def unpack(words, columns):
    """weight_packed [N,words] of int32 to int8 [N,columns]: a byte is the value + 128, low end first."""
    data = np.ascontiguousarray(words.astype("<i4")).view(np.uint8).astype(np.int16) - 128
    return data[:, :columns].astype(np.int8)


# ---- What is written

@pytest.mark.parametrize("symmetric", [True, False])
def test_default_output(symmetric, model, calib, tmp_path):
    """Symmetric activations, which vLLM-Ascend loads too, if nothing else is written."""
    out = tmp_path / "out"
    done = quantize(model, calib, out, *[] if symmetric else ["--no-act-sym"])
    assert ("static activations are symmetric" in done.stderr) == symmetric
    assert json.loads((out / "tare_run.json").read_text())["recipe"]["quant"]["a_sym"] is symmetric
    assert set(output_files(out)) == FILES
    want = tiny.CONFIG | {"quantization_config": quantization_config(
        ["lm_head"], activations=SYMMETRIC if symmetric else ACTIVATIONS)}
    assert config(out) == want
    code, report = verify(out, "--base", model, "--target", "vllm")
    assert code == 0 and report["findings"] == [] and report["layout"] == "compressed-tensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    stored = tensor_file.read_folder(out)
    assert set(index["weight_map"]) == set(stored)
    parts = {"weight": "I8", "weight_scale": "BF16", "input_scale": "BF16"}
    parts |= {} if symmetric else {"input_zero_point": "I8"}
    for name in LINEARS:
        assert {p: stored[f"{name}.{p}"].tag for p in parts} == parts
    floats = {n: t for n, t in tensor_file.read_folder(model).items() if n[:-7] not in LINEARS}
    assert set(stored) == {f"{n}.{p}" for n in LINEARS for p in parts} | set(floats)


@pytest.mark.parametrize("flags", [[], ["--mm-tensor"], ["--dtype", "float16", "--anti-method", "m3"],
                                   ["--dtype", "float32", "--act-method", "3"]],
                         ids=lambda flags: "-".join(flags) or "default")
def test_same_numbers_in_every_layout(flags, model, calib, tmp_path):
    quantize(model, calib, tmp_path / "out", *flags,
             save="ascendv1,safe_tensor,numpy,compressed-tensors")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "ascendv1", "compressed-tensors", "safe_tensor", "tare"]
    engine = tensor_file.read_folder(tmp_path / "out" / "ascendv1")
    ours = tensor_file.read_folder(tmp_path / "out" / "compressed-tensors")
    for name in LINEARS:
        for part, other in (("weight",) * 2, ("weight_scale",) * 2, ("input_scale",) * 2,
                            ("input_zero_point", "input_offset")):
            got, want = ours[f"{name}.{part}"].data, engine[f"{name}.{other}"].data
            assert got.shape == want.shape
            np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32), name)
        assert not {f"{name}.{p}" for p in ("weight_offset", "quant_bias", "deq_scale")} & set(ours)
    for name, tensor in engine.items():
        if name in ours and not name.startswith(tuple(LINEARS)):
            assert ours[name].tag == tensor.tag
            np.testing.assert_array_equal(ours[name].data, tensor.data, name)
    code, report = verify(tmp_path / "out", "--base", model)
    assert code == 0, report
    alone = quantize(model, calib, tmp_path / "alone", *flags, "--no-act-sym")
    assert alone.returncode == 0
    ours, alone = (output_files(tmp_path / f) for f in ("out/compressed-tensors", "alone"))
    assert set(ours) == set(alone)
    assert all(ours[n] == alone[n] for n in ours if n != "tare_run.json")  # which names save.types


def test_symmetric_in_every_layout(model, calib, tmp_path):
    """Offsets 0, and from compressed-tensors they are gone; alone it has the same bytes."""
    save = "ascendv1,safe_tensor,numpy,compressed-tensors"
    quantize(model, calib, tmp_path / "out", "--act-sym", save=save)
    engine = tensor_file.read_folder(tmp_path / "out" / "ascendv1")
    ours = tensor_file.read_folder(tmp_path / "out" / "compressed-tensors")
    for name in LINEARS:
        assert engine[name + ".input_offset"].data.tolist() == [0]
        assert name + ".input_zero_point" not in ours
        assert ours[name + ".input_scale"].data == engine[name + ".input_scale"].data
    code, report = verify(tmp_path / "out", "--base", model)
    assert code == 0 and report["findings"] == [], report
    quantize(model, calib, tmp_path / "alone")
    ours, alone = (output_files(tmp_path / f) for f in ("out/compressed-tensors", "alone"))
    assert set(ours) == set(alone)
    assert all(ours[n] == alone[n] for n in ours if n != "tare_run.json")  # which names save.types


def test_symmetry_is_for_what_is_written_alone(model, calib, tmp_path):
    """Other save types get offsets whatever is beside them; and so does compat."""
    for i, flags in enumerate((["--save", "ascendv1,compressed-tensors"],
                               ["--save", "compressed-tensors", "--compat", "msmodelslim"])):
        done = run_tare("quantize", model, "--out", tmp_path / str(i), "--calib", calib, *flags)
        assert done.returncode == 0, done.stderr
        assert "symmetric" not in done.stderr
        stored = tensor_file.read_folder(
            tmp_path / str(i) / ("compressed-tensors" if i == 0 else ""))
        assert any(stored[name + ".input_zero_point"].data[0] for name in LINEARS)
    done = run_tare("quantize", model, "--out", tmp_path / "no", "--calib", calib, "--act-sym",
                    "--compat", "msmodelslim")
    assert_refused(done, tmp_path / "no", "quant.a_sym", "run.compat")


def test_float_linears_are_ignored(model, calib, tmp_path):
    quantize(model, calib, tmp_path / "out", "--disable-names", "*.mlp.down_proj,*.1.self_attn.*",
             "--no-disable-last-linear")
    float_ones = [n for n in LINEARS if n.endswith("down_proj") or ".1.self_attn." in n]
    assert config(tmp_path / "out")["quantization_config"] == quantization_config(float_ones)
    assert config(tmp_path / "out")["tie_word_embeddings"] is False
    stored = tensor_file.read_folder(tmp_path / "out")
    assert stored["lm_head.weight"].tag == "I8"
    assert {stored[n + ".weight"].tag for n in float_ones} == {"BF16"}


def test_nothing_quantized_is_a_plain_checkpoint(model, calib, tmp_path):
    quantize(model, calib, tmp_path / "out", "--disable-names", "*")
    assert "quantization_config" not in config(tmp_path / "out")
    assert verify(tmp_path / "out", "--base", model)[0] == 0


def test_a_checkpoint_with_a_config_of_its_own(calib, tmp_path):
    """The source's quantization_config, of weights that are float, gives way in its place."""
    model = tiny.write_checkpoint(tmp_path / "model", compression_config={"a": 1})
    quantize(model, calib, tmp_path / "out")
    assert "compression_config" not in config(tmp_path / "out")


# ---- Weights alone

@pytest.mark.parametrize("hidden", [32, 36])
def test_weights_alone(hidden, tmp_path):
    """Packed four to a word; 74 columns do not fill the last one."""
    changes = {"hidden_size": hidden, "intermediate_size": 74}
    model = tiny.write_checkpoint(tmp_path / "model", tiny.make_tensors({**tiny.CONFIG, **changes}),
                                  **changes)
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--a-bit", 16,
                    "--save", "ascendv1,compressed-tensors")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "compressed-tensors"
    assert config(out)["quantization_config"] == quantization_config(
        ["lm_head"], "pack-quantized", None)
    engine, ours = (tensor_file.read_folder(tmp_path / "out" / f)
                    for f in ("ascendv1", "compressed-tensors"))
    for name in LINEARS:
        want, packed = engine[name + ".weight"].data, ours[name + ".weight_packed"]
        rows, columns = want.shape
        assert packed.tag == "I32" and packed.data.shape == (rows, -(-columns // 4))
        np.testing.assert_array_equal(unpack(packed.data, columns), want, name)
        assert ours[name + ".weight_shape"].data.tolist() == [rows, columns]
        assert name + ".weight" not in ours and name + ".weight_offset" not in ours
        np.testing.assert_array_equal(ours[name + ".weight_scale"].data,
                                      engine[name + ".weight_scale"].data, name)
    code, report = verify(tmp_path / "out", "--base", model)
    assert code == 0 and report["findings"] == [], report


# ---- What it cannot hold

def assert_refused(done, out, *words):
    assert done.returncode == 2, (done.returncode, done.stderr)
    for word in words:
        assert word in done.stderr
    assert "calibrate" not in done.stderr
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("flags,words", [
    (["--fa-quant"], ["fa_quant", "compressed-tensors"]),
    (["--a-bit", 16, "--no-w-sym"], ["w_sym", "compressed-tensors"]),
    (["--save", "ascendv1,compressed-tensors", "--fa-quant"], ["fa_quant"]),
    (["--save", "compressed_tensors"], ["compressed_tensors", "possible: ascendv1"]),
], ids=lambda x: "-".join(map(str, x)))
def test_refused(flags, words, model, calib, tmp_path):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib,
                    "--save", "compressed-tensors", *flags)
    assert_refused(done, tmp_path / "out", *words)


def test_shifted_norms_are_refused(calib, tmp_path):
    """m4 gives Qwen3's norms biases, for which there is no tensor."""
    changes = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    tensors = tiny.make_tensors()
    for i in range(2):
        for name in "qk":
            tensors[f"model.layers.{i}.self_attn.{name}_norm.weight"] = ("BF16", np.ones(8))
    model = tiny.write_checkpoint(tmp_path / "model", tensors, **changes)
    flags = ["--out", tmp_path / "out", "--calib", calib, "--save", "compressed-tensors"]
    done = run_tare("quantize", model, *flags, "--anti-method", "m4")
    assert_refused(done, tmp_path / "out", "compressed-tensors cannot hold", "another anti_method")
    done = run_tare("quantize", model, *flags, "--anti-method", "m3")
    assert done.returncode == 0, done.stderr


# ---- Folders and going on

def test_overwrite_leaves_other_checkpoints_alone(model, calib, tmp_path):
    out = tiny.write_checkpoint(tmp_path / "out")  # somebody's model
    before = output_files(out)
    done = run_tare("quantize", model, "--out", out, "--calib", calib, "--overwrite",
                    "--save", "compressed-tensors")
    assert done.returncode == 2 and "which tare did not write" in done.stderr
    assert output_files(out) == before


def test_overwrite_and_sharding(model, calib, tmp_path):
    out = tmp_path / "out"
    quantize(model, calib, out, "--part-file-size", 0)
    assert set(output_files(out)) == FILES - {"model-00001-of-00001.safetensors",
                                       "model.safetensors.index.json"} | {"model.safetensors"}
    done = run_tare("quantize", model, "--out", out, "--calib", calib, "--save", "compressed-tensors")
    assert done.returncode == 2 and "--overwrite" in done.stderr
    quantize(model, calib, out, "--overwrite")
    assert set(output_files(out)) == FILES and verify(out)[0] == 0


CONFIG = {"num_hidden_layers": 12, "hidden_size": 64, "intermediate_size": 160, "head_dim": 16}


def test_killed_and_resumed(tmp_path):
    """A run that is killed behind its first checkpoint goes on to the same bytes."""
    model = tiny.write_checkpoint(tmp_path / "model", tiny.make_tensors({**tiny.CONFIG, **CONFIG}),
                                  **CONFIG)
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(np.random.default_rng(3).integers(0, 256, (8, 100)).tolist()))
    flags = ["--checkpoint-every", 1, "--act-method", 3]
    save = "compressed-tensors,numpy"
    quantize(model, ids, tmp_path / "whole", *flags, save=save)
    out = tmp_path / "out"
    process = subprocess.Popen([str(a) for a in (
        TARE_BIN, "quantize", model, "--out", out, "--calib", ids, "--save", save, *flags)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = out / ".tare" / "journal"
    while process.poll() is None and not (
            journal.exists() and len(journal.read_bytes().splitlines()) > 2):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    done = quantize(model, ids, out, *flags, "--resume", save=save)
    assert "going on" in done.stderr
    assert output_files(out) == output_files(tmp_path / "whole")
    done = quantize(model, ids, out, *flags, "--resume", save=save)
    assert "finished already" in done.stderr


# ---- verify and inspect

def test_verify_and_inspect(model, calib, tmp_path):
    out = tmp_path / "out"
    quantize(model, calib, out, "--no-act-sym")
    done = run_tare("inspect", out, "--json")
    report = json.loads(done.stdout)
    assert report["kind"] == "output" and report["layouts"] == "compressed-tensors"
    assert report["compressed-tensors"]["quantized_linears"] == 14
    assert report["compressed-tensors"]["types"]["W8A8"]["tensors"] == 4 * 14
    assert json.loads(run_tare("inspect", model, "--json").stdout)["kind"] == "checkpoint"
    changed = config(out)
    changed["quantization_config"]["ignore"] = []
    (out / "config.json").write_text(json.dumps(changed))
    code, report = verify(out)
    assert code == 1 and report["failures"] == 1
    finding, = report["findings"]
    assert finding["rule"] == 23 and finding["tensor"] == "lm_head"


def test_dry_run_counts_its_bytes(model, calib, tmp_path):
    sizes = {}
    for save in ("ascendv1", "ascendv1,compressed-tensors"):
        done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib, "--save", save,
                        "--dry-run", "--no-probe", "--json")
        assert done.returncode == 0, done.stderr
        sizes[save] = json.loads(done.stdout)["disk"]["written"]
    assert sizes["ascendv1,compressed-tensors"] == 2 * sizes["ascendv1"]

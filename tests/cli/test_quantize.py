"""What `tare quantize` does with good input, seen from outside."""
import json
import os
import pty
import signal
import stat
import subprocess
import time

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import ROOT, TARE_BIN, run_tare
from tokenizers import Tokenizer

ASCENDV1 = {"quant_model_weights-00001-of-00001.safetensors",
            "quant_model_weights.safetensors.index.json", "quant_model_description.json",
            "config.json", "tokenizer.json", "tokenizer_config.json", "tare_run.json",
            "tare/tare_stats.safetensors"}
LINEARS = [f"model.layers.{i}.{name}_proj" for i in range(2) for name in (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")]


def quantize(model, calib, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--calib", calib, *flags)
    assert done.returncode == 0, done.stderr
    return done


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def description(out):
    return json.loads((out / "quant_model_description.json").read_text())


def quantized_modules(out):
    return {key.removesuffix(".weight") for key, kind in description(out).items()
            if kind == "W8A8" and key.endswith(".weight")}


# ---- What is written

def test_default_output(model, calib, tmp_path):
    out = tmp_path / "out"
    quantize(model, calib, out)
    assert set(files(out)) == ASCENDV1
    assert quantized_modules(out) == set(LINEARS)
    config = json.loads((out / "config.json").read_text())
    assert config == tiny.CONFIG
    assert list(config) == list(tiny.CONFIG)  # keys keep their order
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    tensors, source = tensor_file.read_folder(out), tensor_file.read_folder(model)
    assert set(tensors) == {k for k in description(out) if "." in k}
    for name in LINEARS:
        n, k = source[name + ".weight"].data.shape
        shapes = {"weight": ("I8", (n, k)), "weight_scale": ("F32", (n, 1)),
                  "weight_offset": ("F32", (n, 1)), "input_scale": ("F32", (1,)),
                  "input_offset": ("F32", (1,)), "quant_bias": ("I32", (n,)),
                  "deq_scale": ("F32", (n,))}
        for part, (tag, shape) in shapes.items():
            tensor = tensors[f"{name}.{part}"]
            assert (tensor.tag, tensor.data.shape) == (tag, shape), f"{name}.{part}"
    for name in set(source) - {n + ".weight" for n in LINEARS}:
        assert tensors[name].tag == "BF16"
        np.testing.assert_array_equal(tensors[name].data, source[name].data)


def test_weights_by_hand(model, calib, tmp_path):
    """Section 3 of the W8A8 specification in numpy: scale rounded to BF16 first, then integers."""
    quantize(model, calib, tmp_path / "out")
    tensors, source = tensor_file.read_folder(tmp_path / "out"), tensor_file.read_folder(model)
    for name in LINEARS:
        w = source[name + ".weight"].data
        scale = tensor_file.round_to(np.abs(w.astype(float)).max(1, keepdims=True) / 127, "BF16")
        q = np.clip(np.rint(w / scale), -127, 127)
        np.testing.assert_array_equal(tensors[name + ".weight_scale"].data, scale)
        np.testing.assert_array_equal(tensors[name + ".weight"].data, q)
        assert not tensors[name + ".weight_offset"].data.any()
        deq = scale.reshape(-1) * tensors[name + ".input_scale"].data
        np.testing.assert_array_equal(tensors[name + ".deq_scale"].data, deq)
        offset = int(tensors[name + ".input_offset"].data[0])
        np.testing.assert_array_equal(tensors[name + ".quant_bias"].data,
                                      -offset * q.astype(np.int64).sum(1))


def test_first_input_scale_by_hand(model, tmp_path):
    """act_method 1 on the first layer: means of each sample's extremes of norm(embedding)."""
    ids = [[1, 2, 3, 250], [9, 77], [130, 131, 132]]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    quantize(model, tmp_path / "ids.json", tmp_path / "out", "--compute", "fp32")
    source = {name: t.data.astype(float) for name, t in tensor_file.read_folder(model).items()}
    lows, highs = [], []
    for sample in ids:
        x = source["model.embed_tokens.weight"][sample]
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + tiny.CONFIG["rms_norm_eps"])
        x = x * source["model.layers.0.input_layernorm.weight"]
        lows.append(x.min())
        highs.append(x.max())
    low, high = min(np.mean(lows), 0), max(np.mean(highs), 0)
    scale = tensor_file.round_to([(high - low) / 255], "BF16")[0]
    offset = np.clip(np.rint(-low / scale) - 128, -128, 127)
    tensors = tensor_file.read_folder(tmp_path / "out")
    for name in ("q", "k", "v"):
        prefix = f"model.layers.0.self_attn.{name}_proj."
        assert tensors[prefix + "input_scale"].data[0] == scale
        assert tensors[prefix + "input_offset"].data[0] == offset


def inputs_of(folder):
    return {name: t.data.tolist() for name, t in tensor_file.read_folder(folder).items()
            if name.endswith((".input_scale", ".input_offset"))}


def test_final_scales(model, tmp_path):
    """Each sample goes on with the scales that all samples made: their order does not matter, as it
    does otherwise, and of one sample, or of equal ones, the two ways are the same."""
    rng = np.random.default_rng(3)
    samples = [rng.integers(0, 256, n).tolist() for n in (3, 40, 9, 70)]

    def run(ids, *flags):
        out = tmp_path / "out"
        (tmp_path / "ids.json").write_text(json.dumps(ids))
        quantize(model, tmp_path / "ids.json", out, "--overwrite", *flags)
        return inputs_of(out)

    final = run(samples, "--final-scales")
    assert run(samples[::-1], "--final-scales") == final
    assert run(samples[::-1]) != run(samples) != final
    for equal in (samples[1:2], [samples[1]] * 3):
        assert run(equal, "--final-scales") == run(equal, "--no-final-scales")
    four = run(samples, "--act-method", "4")
    assert run(samples, "--act-method", "4", "--final-scales") == four
    assert run(samples, "--act-method", "4", "--no-final-scales") != four


def test_final_scales_by_units_and_by_blocks(model, calib, tmp_path):
    """npy files keep a block together, whose units are concluded one after the other there."""
    quantize(model, calib, tmp_path / "a", "--act-method", "4")
    quantize(model, calib, tmp_path / "b", "--act-method", "4", "--save", "ascendv1,numpy")
    a, b = (tensor_file.read_folder(tmp_path / name) for name in ("a", "b/ascendv1"))
    assert a.keys() == b.keys()
    for name, t in a.items():
        np.testing.assert_array_equal(t.data, b[name].data)


def test_gptq_whatever_the_run_is_like(tmp_path):
    """Two blocks of columns and a bit, two chunks of rows and a bit, and no share of either for a thread;
    but not of the rows, whose order is that of the sums."""
    config = {"hidden_size": 320, "intermediate_size": 576, "num_attention_heads": 5,
              "num_key_value_heads": 5, "head_dim": 64}
    model = tiny.write_checkpoint(tmp_path / "model", tiny.make_tensors({**tiny.CONFIG, **config}), **config)
    rng = np.random.default_rng(5)
    calib = tmp_path / "ids.json"
    calib.write_text(json.dumps([rng.integers(0, 256, n).tolist() for n in (120, 3, 110, 77, 90)]))
    weights = []
    for n, flags in enumerate((["--threads", 1], ["--threads", 2], ["--threads", 3, "--batch-rows", 1],
                               ["--threads", 2, "--skip-layouts", 9, "--batch-rows", 280])):
        quantize(model, calib, tmp_path / str(n), "--weight-method", "gptq", *flags)
        weights.append({name: t.data for name, t in tensor_file.read_folder(tmp_path / str(n)).items()})
    for other in weights[1:]:
        for name, data in weights[0].items():
            np.testing.assert_array_equal(other[name], data, name)
    quantize(model, calib, tmp_path / "plain", "--final-scales")
    plain = tensor_file.read_folder(tmp_path / "plain")
    for name in LINEARS:
        assert (plain[name + ".weight"].data != weights[0][name + ".weight"]).mean() > 0.1
        np.testing.assert_array_equal(plain[name + ".weight_scale"].data, weights[0][name + ".weight_scale"])


def test_gptq_needs_prompts(model, tmp_path):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--weight-method", "gptq", "--scheme",
                    "w8a8_dynamic")
    assert done.returncode == 2
    assert "weight_method gptq needs calibration samples" in done.stderr
    assert not (tmp_path / "out").exists()


def test_modes_of_files_and_folders(model, calib, tmp_path):
    for umask, folder, file in ((0o022, 0o755, 0o644), (0o007, 0o770, 0o660), (0o077, 0o700, 0o600)):
        out = tmp_path / f"new{umask}" / "out"
        before = os.umask(umask)
        quantize(model, calib, out)
        os.umask(before)
        for path in (out.parent, out):
            assert stat.S_IMODE(path.stat().st_mode) == folder
        for path in out.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def test_fallback(model, calib, tmp_path):
    out = tmp_path / "out"
    quantize(model, calib, out, "--disable-names", "*.mlp.down_proj",
             "--disable-names", "model.layers.0.self_attn.o_proj")
    want = {n for n in LINEARS if not n.endswith("down_proj")}
    assert quantized_modules(out) == want - {"model.layers.0.self_attn.o_proj"}
    assert description(out)["model.layers.1.mlp.down_proj.weight"] == "FLOAT"


def test_fused_groups_stay_whole(model, calib, tmp_path):
    done = quantize(model, calib, tmp_path / "out", "--disable-names", "model.layers.1.mlp.up_proj")
    gone = set(LINEARS) - quantized_modules(tmp_path / "out")
    assert gone == {"model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"}
    assert "model.layers.1.mlp.gate_proj" in done.stderr  # a warning says so


def test_level_takes_whole_groups(model, calib, tmp_path):
    quantize(model, calib, tmp_path / "out", "--disable-level", "L3")
    gone = set(LINEARS) - quantized_modules(tmp_path / "out")
    assert len(gone) >= 3
    for group in ("self_attn.q self_attn.k self_attn.v", "mlp.gate mlp.up"):
        for i in range(2):
            names = {f"model.layers.{i}.{part}_proj" for part in group.split()}
            assert names <= gone or not names & gone


def test_level_beyond_the_model(model, calib, tmp_path):
    done = quantize(model, calib, tmp_path / "out", "--disable-level", "L99")
    assert quantized_modules(tmp_path / "out") == set()
    assert description(tmp_path / "out")["model_quant_type"] == "FLOAT"
    assert "warning" in done.stderr.lower()


def test_head_of_a_tied_model(model, calib, tmp_path):
    quantize(model, calib, tmp_path / "out", "--no-disable-last-linear")
    assert "lm_head" in quantized_modules(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    tensors = tensor_file.read_folder(tmp_path / "out")
    assert tensors["lm_head.weight"].data.shape == (260, 32)
    assert tensors["model.embed_tokens.weight"].tag == "BF16"


def test_weight_scale_per_matrix(model, calib, tmp_path):
    """ascendv1 repeats the one scale; safe_tensor stores it as [1]."""
    quantize(model, calib, tmp_path / "a", "--mm-tensor")
    quantize(model, calib, tmp_path / "s", "--mm-tensor", "--save", "safe_tensor")
    a, s = tensor_file.read_folder(tmp_path / "a"), tensor_file.read_folder(tmp_path / "s")
    for name in LINEARS:
        assert s[name + ".weight_scale"].data.shape == s[name + ".deq_scale"].data.shape == (1,)
        assert len(np.unique(a[name + ".weight_scale"].data)) == 1
        assert a[name + ".weight_scale"].data.shape == (len(a[name + ".weight"].data), 1)


def test_save_types_agree(model, calib, tmp_path):
    out = tmp_path / "out"
    quantize(model, calib, out, "--save", "ascendv1,safe_tensor,numpy")
    ascend = tensor_file.read_folder(out / "ascendv1")
    safe = tensor_file.read_folder(out / "safe_tensor")
    assert set(ascend) == set(safe)
    for name in ascend:
        np.testing.assert_array_equal(ascend[name].data, safe[name].data, name)
    for part in ("input_scale", "input_offset", "quant_bias", "deq_scale", "weight_scale"):
        npy = np.load(out / "safe_tensor" / f"{part}.npy", allow_pickle=True).item()
        assert set(npy) == set(LINEARS)
        for name, value in npy.items():
            np.testing.assert_array_equal(value, safe[f"{name}.{part}"].data)
    config = json.loads((out / "safe_tensor" / "config.json").read_text())
    assert config["quantize"] == "w8a8"
    for folder in ("ascendv1", "safe_tensor"):
        done = run_tare("verify", out / folder, "--base", model)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype,tag,deq", [("float16", "F16", "I64"), ("float32", "F32", "I64"),
                                           ("bfloat16", "BF16", "F32")])
def test_serving_dtype(dtype, tag, deq, model, calib, tmp_path):
    """Scales are representable in the serving dtype; it decides how deq_scale is stored."""
    out = tmp_path / "out"
    quantize(model, calib, out, "--dtype", dtype, "--save", "safe_tensor")
    tensors = tensor_file.read_folder(out)
    for name in LINEARS:
        for part in ("weight_scale", "input_scale", "input_offset"):
            assert tensors[f"{name}.{part}"].tag == tag
        assert tensors[name + ".deq_scale"].tag == deq
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype


def test_shards(calib, tmp_path):
    """One GiB a file is more than the tiny model has; 0 is one file without an index."""
    model = tiny.write_checkpoint(tmp_path / "model")
    quantize(model, calib, tmp_path / "one", "--part-file-size", "0")
    names = {p.name for p in (tmp_path / "one").iterdir() if "weights" in p.name}
    assert names == {"quant_model_weights.safetensors"}
    quantize(model, calib, tmp_path / "part", "--part-file-size", "1")
    index = json.loads(
        (tmp_path / "part" / "quant_model_weights.safetensors.index.json").read_text())
    tensors = tensor_file.read_folder(tmp_path / "part")
    assert set(index["weight_map"]) == set(tensors)
    assert set(index["weight_map"].values()) == {"quant_model_weights-00001-of-00001.safetensors"}
    width = {"I8": 1, "BF16": 2, "F32": 4, "I32": 4}
    size = sum(t.data.size * width[t.tag] for t in tensors.values())
    assert index["metadata"]["total_size"] == size


def test_sharded_source_gives_the_same_weights(model, calib, tmp_path):
    sharded = tiny.write_checkpoint(tmp_path / "sharded")
    tiny.write_shards(sharded, shards=3)
    quantize(model, calib, tmp_path / "a")
    quantize(sharded, calib, tmp_path / "b")
    name = "quant_model_weights-00001-of-00001.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# ---- What is copied

def test_copied_files(calib, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model", auto_map={"AutoModel": "modeling_x.Model"},
                                  quantization_config={"quant_method": "gptq"})
    for name in ("README.md", "LICENSE", "merges.txt", "chat_template.jinja", "modeling_x.py",
                 "pytorch_model.bin", "generation_config.json"):
        (model / name).write_text(json.dumps({"name": name}))
    (model / "NOTICE").symlink_to("nowhere")
    done = quantize(model, calib, tmp_path / "out")
    assert set(files(tmp_path / "out")) == ASCENDV1 | {
        "README.md", "LICENSE", "merges.txt", "chat_template.jinja", "generation_config.json"}
    assert "NOTICE" in done.stderr and "auto_map" in done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config and "quantization_config" not in config
    quantize(model, calib, tmp_path / "code", "--copy-code")
    assert (tmp_path / "code" / "modeling_x.py").exists()
    assert "auto_map" in json.loads((tmp_path / "code" / "config.json").read_text())


def test_overwrite_replaces(model, calib, tmp_path):
    out = tmp_path / "out"
    quantize(model, calib, out)
    quantize(model, calib, out, "--disable-names", "*.mlp.*", "--overwrite")
    assert not any(".mlp." in name for name in quantized_modules(out))
    assert set(files(out)) == ASCENDV1


# ---- The same bytes

@pytest.mark.parametrize("flags", [
    [], ["--act-method", "2"], ["--act-method", "3", "--disable-level", "L2"], ["--pr", "0.5"],
    ["--compat", "msmodelslim", "--dtype", "float16"], ["--cpu", "scalar"],
], ids=lambda flags: " ".join(flags) or "default")
def test_threads_and_runs_change_nothing(flags, model, calib, tmp_path):
    for name, threads in (("a", 1), ("b", 2), ("c", 2), ("d", 5)):
        quantize(model, calib, tmp_path / name, "--threads", threads, *flags)
    a = files(tmp_path / "a")
    assert a == files(tmp_path / "b") == files(tmp_path / "c") == files(tmp_path / "d")


def test_seed_matters_below_one(model, calib, tmp_path):
    for name, flags in {"a": ["--seed", "1"], "b": ["--seed", "2"]}.items():
        quantize(model, calib, tmp_path / name, "--pr", "0.5", *flags)
    assert files(tmp_path / "a") != files(tmp_path / "b")


def test_weights_do_not_depend_on_the_cpu(model, calib, tmp_path):
    quantize(model, calib, tmp_path / "auto", "--compute", "fp32")
    quantize(model, calib, tmp_path / "scalar", "--cpu", "scalar", "--compute", "fp32")
    a = tensor_file.read_folder(tmp_path / "auto")
    b = tensor_file.read_folder(tmp_path / "scalar")
    for name in LINEARS:
        for part in ("weight", "weight_scale"):
            np.testing.assert_array_equal(a[f"{name}.{part}"].data, b[f"{name}.{part}"].data)
        np.testing.assert_allclose(a[name + ".input_scale"].data, b[name + ".input_scale"].data,
                                   rtol=2**-7)  # a BF16 scale may round to its neighbour


# ---- Calibration files

def token_ids():
    tokenizer = Tokenizer.from_str(json.dumps(tiny.make_tokenizer()))
    return [tokenizer.encode(p).ids for p in tiny.PROMPTS]


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def test_every_calibration_format_gives_the_same(model, calib, tmp_path):
    prompts = tiny.PROMPTS
    same = [
        tiny.write_prompts(tmp_path / "a.jsonl", key="inputs_pretokenized"),
        tiny.write_prompts(tmp_path / "b.jsonl", key="text"),
        write_json(tmp_path / "strings.json", prompts),
        write_json(tmp_path / "mix.json", [{"prompt": p, "ans": "x"} for p in prompts]),
        write_json(tmp_path / "ids.json", token_ids()),
    ]
    quantize(model, calib, tmp_path / "want")
    weights = "quant_model_weights-00001-of-00001.safetensors"
    want = (tmp_path / "want" / weights).read_bytes()
    for path in same:
        out = tmp_path / (path.name + ".out")
        quantize(model, path, out)
        assert (out / weights).read_bytes() == want, path.name


def test_text_file(model, tmp_path):
    lines = ["one line", "zwei Zeilen", "三"]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    quantize(model, tmp_path / "a.txt", tmp_path / "a")
    quantize(model, write_json(tmp_path / "b.json", lines), tmp_path / "b")
    assert description(tmp_path / "a") == description(tmp_path / "b")
    weights = "quant_model_weights-00001-of-00001.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()


def test_samples_and_max_length(model, tmp_path):
    ids = token_ids()
    long = [row * 40 for row in ids]
    quantize(model, write_json(tmp_path / "long.json", long), tmp_path / "a",
             "--samples", 3, "--max-length", 7)
    quantize(model, write_json(tmp_path / "cut.json", [row[:7] for row in long[:3]]),
             tmp_path / "b")
    weights = "quant_model_weights-00001-of-00001.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()


BUILTIN = ROOT / "src" / "calibration" / "builtin.jsonl"


def test_builtin_prompts(model, tmp_path):
    """Compiled in, they are what the file says, in both languages."""
    prompts = [json.loads(line)["prompt"] for line in BUILTIN.read_text("utf-8").splitlines()]
    assert 30 <= len(prompts) == len(set(prompts)) <= 50
    chinese = sum(any("\u4e00" <= c <= "\u9fff" for c in p) for p in prompts)
    assert 0.3 <= chinese / len(prompts) <= 0.7
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    lengths = [len(tokenizer.encode(p).ids) for p in prompts]
    a = json.loads(quantize(model, "builtin", tmp_path / "a", "--max-length", 100, "--json").stdout)
    quantize(model, BUILTIN, tmp_path / "b", "--max-length", 100)
    weights = "quant_model_weights-00001-of-00001.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    assert a["samples"] == len(prompts) and a["truncated"] == sum(n > 100 for n in lengths) > 0
    assert a["tokens"] == sum(min(n, 100) for n in lengths)


def test_builtin_prompts_are_tokenized(model, tmp_path):
    done = run_tare("tokenize", model, "--text", "builtin")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompts = [json.loads(line)["prompt"] for line in BUILTIN.read_text("utf-8").splitlines()]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        tokenizer.encode(p).ids for p in prompts]


def test_a_file_may_be_named_builtin(model, tmp_path):
    tiny.write_prompts(tmp_path / "builtin")
    done = run_tare("quantize", model, "--out", "out", "--calib", "./builtin", "--json",
                    cwd=tmp_path)
    assert json.loads(done.stdout)["samples"] == len(tiny.PROMPTS)


def test_too_long_without_max_length(model, tmp_path):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", "builtin")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert "builtin: row " in done.stderr and "--max-length 128 truncates" in done.stderr


def test_truncation_is_said(model, tmp_path):
    (tmp_path / "a.txt").write_text("x" * 50 + "\n\n" + "y" * 10 + "\n" + "z" * 11 + "\n")
    done = quantize(model, tmp_path / "a.txt", tmp_path / "a", "--max-length", 10)
    assert "2 samples were cut to 10 tokens" in done.stderr
    assert "calibration 3 samples, 30 tokens" in done.stdout
    assert "truncated   2 samples" in done.stdout
    record = json.loads((tmp_path / "a" / "tare_run.json").read_text())
    assert record["calibration"]["truncated"] == 2


# ---- Recipes

def test_recipe_equals_flags(model, calib, tmp_path):
    (tmp_path / "r.yaml").write_text("""\
quant: {act_method: 2, mm_tensor: true}
fallback: {disable_names: ["*.mlp.down_proj"], disable_last_linear: false}
calibration: {samples: 4}
save: {types: [ascendv1], part_file_size: 0}
run: {dtype: float16}
""")
    quantize(model, calib, tmp_path / "a", "--recipe", tmp_path / "r.yaml")
    quantize(model, calib, tmp_path / "b", "--act-method", "2", "--mm-tensor", "--disable-names",
             "*.mlp.down_proj", "--no-disable-last-linear", "--samples", "4",
             "--part-file-size", "0", "--dtype", "float16")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_flags_win_over_the_recipe(model, calib, tmp_path):
    (tmp_path / "r.yaml").write_text("quant: {act_method: 2}\nfallback: {disable_level: L2}\n")
    for order in ([], ["late"]):
        flags = ["--act-method", "1", "--disable-level", "L0"]
        recipe = ["--recipe", tmp_path / "r.yaml"]
        out = tmp_path / ("late" if order else "early")
        quantize(model, calib, out, *(flags + recipe if order else recipe + flags))
    quantize(model, calib, tmp_path / "plain")
    assert files(tmp_path / "early") == files(tmp_path / "late") == files(tmp_path / "plain")


# ---- Talking to people and machines

def test_streams(model, calib, tmp_path):
    done = quantize(model, calib, tmp_path / "out")
    assert str(tmp_path / "out") in done.stdout
    assert "\r" not in done.stderr and "\x1b" not in done.stderr  # no bar off a terminal
    assert done.stderr


def test_quiet(model, calib, tmp_path):
    assert quantize(model, calib, tmp_path / "out", "--quiet").stderr == ""


def test_json(model, calib, tmp_path):
    done = quantize(model, calib, tmp_path / "out", "--json")
    result = json.loads(done.stdout)
    assert result["linears"] == len(LINEARS) + 1 and result["linears_quantized"] == len(LINEARS)
    assert result["samples"] == len(tiny.PROMPTS)
    assert result["tokens"] == sum(map(len, token_ids()))
    assert result["peak_resident_bytes"] > 0


def test_verbose_says_more(model, calib, tmp_path):
    plain = quantize(model, calib, tmp_path / "a").stderr
    assert len(quantize(model, calib, tmp_path / "b", "--verbose").stderr) > len(plain)


def test_progress_bar_on_a_terminal(model, calib, tmp_path):
    master, slave = pty.openpty()
    process = subprocess.Popen([TARE_BIN, "quantize", model, "--out", tmp_path / "out",
                                "--calib", calib], stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end closed
            break
        if not part:
            break
        seen += part
    os.close(master)
    assert process.wait(60) == 0
    assert b"\r" in seen.replace(b"\r\n", b"\n")
    assert b"layer 2 of 2" in seen


@pytest.mark.parametrize("number,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_cleanly(number, status, model, tmp_path):
    out = tmp_path / "out"
    rows = np.random.default_rng(0).integers(0, 260, (20000, 100)).tolist()
    calib = write_json(tmp_path / "ids.json", rows)
    process = subprocess.Popen([TARE_BIN, "quantize", model, "--out", out, "--calib", calib],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not out.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize("method", ["m1", "m2", "m3", "m4", "m5", "m6"])
def test_smoothed_output_verifies_against_its_base(model, calib, tmp_path, method):
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib, "--fa-quant",
                    "--anti-method", method)
    assert done.returncode == 0, done.stderr
    done = run_tare("verify", tmp_path / "out", "--base", model)
    assert done.returncode == 0, done.stdout

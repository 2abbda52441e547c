"""--max-memory and --dry-run: what is promised is kept, by the kernel's numbers."""
import json
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import EXAMPLES, SMOLLM2, TARE_BIN, need_cpu, run_tare

MIB = 1 << 20
pytestmark = pytest.mark.budget
RECIPES = [
    [], ["--act-method", "3", "--anti-method", "m3"], ["--recipe", "llama3.1-70b"],
    ["--anti-method", "m6", "--threads", "1"], ["--anti-method", "m2", "--act-method", "2"],
    ["--a-bit", "16", "--save", "compressed-tensors"],
    ["--anti-method", "m4", "--save", "safe_tensor,numpy"], ["--anti-method", "m5", "--pr", "0.5"],
    ["--disable-level", "L3", "--no-disable-last-linear", "--fa-quant", "--fa-amp", "1"],
    ["--compat", "msmodelslim", "--dtype", "float16", "--anti-method", "m1", "--act-method", "3"],
    ["--compat", "msmodelslim", "--kv-cache", "c8", "--no-kv-sym", "--save", "safe_tensor",
     "--disable-level", "L2"],
    ["--weight-method", "gptq", "--mix", "*.mlp.*=w8a16", "--anti-method", "m1"],
]
GPTQ = ["--weight-method", "gptq"]
# Wide enough that weights and activations outweigh what is fixed.
WIDE = tiny.CONFIG | {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 512, "tie_word_embeddings": True}
WIDE_LINEARS = {"q": (1024, 1024), "k": (256, 1024), "v": (256, 1024), "o": (1024, 1024),
                "gate": (4096, 1024), "up": (4096, 1024), "down": (1024, 4096)}


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def write_wide(folder, tag, **config):
    """A checkpoint with one wide layer, its linears stored as `tag`, and 5 samples of 120 tokens."""
    config = WIDE | config
    rng = np.random.default_rng(0)
    block = rng.normal(0, 0.02, 1 << 16).astype(np.float32)
    tensors, changes = {}, {}
    for name, shape in tiny.tensor_shapes(config).items():
        tensors[name] = ("BF16", np.resize(block, shape) + np.float32(len(shape) == 1))
        if "_proj." in name and tag != "BF16":
            tensors[name] = (tag, tensors[name][1])
        if "_proj." in name and tag == "F8_E4M3":  # any bytes but NaN, of -448 to 448
            tensors[name] = (tag, np.resize(rng.integers(0, 127, 1 << 16), shape))
            tensors[name + "_scale_inv"] = ("F32", np.full([n // 128 for n in shape], 1e-4))
            changes = {"quantization_config": FP8}
    model = tiny.write_checkpoint(folder / "model", tensors, **config, **changes)
    (folder / "ids.json").write_text(json.dumps(rng.integers(0, 256, (5, 120)).tolist()))
    return model, folder / "ids.json"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return write_wide(tmp_path_factory.mktemp("wide"), "BF16")


@pytest.fixture(scope="module", params=["F8_E4M3", "F32"])
def wide_stored(request, tmp_path_factory):
    """Linears that are not written as they are stored."""
    return write_wide(tmp_path_factory.mktemp("wide"), request.param)


def quantize(model, calib, out, *flags, **kwargs):
    return run_tare("quantize", model, "--out", out, "--calib", calib, "--json", *flags, **kwargs)


def smallest(model, calib, out, *flags):
    """MiB that the refusal of a far too small budget names."""
    done = quantize(model, calib, out, "--max-memory", "cpu=1MiB", *flags)
    assert done.returncode == 2, done.stderr
    found = re.search(r"max_memory cpu=1MiB is too small: the smallest budget that works here is "
                      r"cpu=(\d+)MiB \(.+: .*fixed \d+ MiB\)", done.stderr)
    assert found, done.stderr
    return int(found[1])


def dry_run(model, calib, *flags):
    done = run_tare("quantize", model, "--calib", calib, "--dry-run", "--json", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def outputs(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_smallest(model, calib, tmp_path, flags):
    """Exactly the reported minimum works, also as a limit of the kernel; a MiB less is refused."""
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_mtime_ns
    need = smallest(model, calib, out, *flags)
    done = quantize(model, calib, out, "--max-memory", f"cpu={need - 1}MiB", *flags)
    assert done.returncode == 2 and f"works here is cpu={need}MiB" in done.stderr, done.stderr
    assert out.stat().st_mtime_ns == before and not list(out.iterdir())

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (need * MIB, need * MIB))

    done = quantize(model, calib, out, "--max-memory", f"cpu={need}MiB", *flags, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_resident_bytes"] <= need * MIB
    done = quantize(model, calib, tmp_path / "free", *flags)
    assert done.returncode == 0, done.stderr
    assert outputs(out) == outputs(tmp_path / "free")


@pytest.mark.parametrize("flags", RECIPES, ids=" ".join)
def test_smallest_budget(flags, model, calib, tmp_path):
    check_smallest(model, calib, tmp_path, flags)


@pytest.mark.parametrize("flags", [*RECIPES[:3], GPTQ], ids=" ".join)
def test_smallest_budget_of_a_wide_layer(flags, wide, tmp_path):
    check_smallest(*wide, tmp_path, flags)


FLOATS = ["--disable-names", "*.down_proj,*.o_proj"]


@pytest.mark.parametrize("flags", [
    FLOATS, [*FLOATS, "--anti-method", "m1"],
    [*FLOATS, "--compat", "msmodelslim", "--dtype", "bfloat16", "--anti-method", "m4"],
    [*FLOATS, "--a-bit", "16"], [*FLOATS, "--a-bit", "16", "--compat", "msmodelslim"]], ids=" ".join)
def test_smallest_budget_of_stored_weights(flags, wide_stored, tmp_path):
    check_smallest(*wide_stored, tmp_path, flags)


def test_fp8_counts_as_stored(wide, tmp_path):
    """Of the largest linear, 4096 x 1024, while it is quantized: 4 MiB less than in BF16, but for
    its scales."""
    fp8 = write_wide(tmp_path, "F8_E4M3")
    need = [smallest(*model, tmp_path / "out", "--threads", "1") for model in (wide, fp8)]
    assert need[0] - need[1] in (3, 4, 5), need


@pytest.mark.skipif(not SMOLLM2.exists(), reason="SmolLM2 is not here (make demo gets it)")
def test_smallest_budget_of_a_real_model(tmp_path):
    check_smallest(SMOLLM2, EXAMPLES / "prompts.jsonl", tmp_path, ["--samples", "4"])


def long_samples(folder):
    """2,000 tokens."""
    file = folder / "ids.json"
    file.write_text(json.dumps([[i % 250 for i in range(400)]] * 5))
    return file


def check_plan(model, tmp_path, flags):
    """What the kernel measured is at most the plan and at least 80 % of it. On two
    threads: what is set aside for a thread is a bound for all layers, and this small one leaves
    most of it untouched. A writer that happens to be quick holds less than it may: what counts is
    the most of three runs."""
    flags = [*flags, "--threads", 2]
    ids = long_samples(tmp_path)
    plan = dry_run(model, ids, "--no-probe", *flags)["memory"]
    measured = 0
    for _ in range(3):
        if measured < 0.8 * plan["peak"]:
            done = quantize(model, ids, tmp_path / "out", *flags, "--overwrite")
            assert done.returncode == 0, done.stderr
            measured = max(measured, json.loads(done.stdout)["peak_resident_bytes"])
    assert 0.8 * plan["peak"] <= measured <= plan["peak"], plan
    terms = ("weights", "packed", "activations", "workspace", "smoothing", "scratch", "output",
             "fixed")
    assert sum(plan[t] for t in terms) == plan["peak"]


@pytest.mark.parametrize("cpu", ["scalar", "avx2", "avx512", "amx"])
@pytest.mark.parametrize("flags", [[], ["--act-method", "3", "--anti-method", "m1"]], ids=" ".join)
def test_the_plan_is_no_guess(flags, cpu, wide, tmp_path):
    """Whatever kernels compute."""
    need_cpu(cpu)
    check_plan(wide[0], tmp_path, [*flags, "--cpu", cpu])


@pytest.mark.parametrize("flags", [
    FLOATS, [*FLOATS, "--anti-method", "m1"],
    [*FLOATS, "--compat", "msmodelslim", "--dtype", "bfloat16"]], ids=" ".join)
def test_the_plan_of_stored_weights(flags, wide_stored, tmp_path):
    check_plan(wide_stored[0], tmp_path, flags)


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """Two layers beside which the program itself is small."""
    return write_wide(tmp_path_factory.mktemp("wider"), "BF16", num_hidden_layers=2,
                      hidden_size=1536, intermediate_size=6144, num_attention_heads=24,
                      num_key_value_heads=6)


@pytest.mark.parametrize("flags", [
    [], ["--act-method", "3", "--anti-method", "m3"], ["--anti-method", "m5", "--pr", "0.5"],
    ["--a-bit", "16"], ["--no-disable-last-linear", "--fa-quant"], ["--kv-cache", "c8"],
    ["--kv-cache", "c8", "--compat", "msmodelslim"],
    ["--scheme", "w8a8_dynamic", "--anti-method", "m1"], [*GPTQ, "--act-method", "4"],
    [*GPTQ, "--scheme", "w8a16"], [*GPTQ, "--scheme", "w8a8_dynamic", "--disable-level", "L1"]],
    ids=" ".join)
def test_the_plan_of_any_budget(flags, wider, tmp_path):
    """From the smallest budget to one that holds all, and whatever layouts there are between."""
    ids = long_samples(tmp_path)
    least = smallest(wider[0], ids, tmp_path / "out", *flags, "--threads", 2)
    most = dry_run(wider[0], ids, "--no-probe", *flags, "--threads", 2)["memory"]["peak"] // MIB + 1
    for budget in {least, (2 * least + most) // 3, (least + 2 * most) // 3, most}:
        if budget > 100:  # MiB; below it is the program's own share that counts
            check_plan(wider[0], tmp_path, [*flags, "--max-memory", f"cpu={budget}MiB"])


def test_default_budget_is_a_share_of_what_is_free(model, calib, tmp_path):
    """What would do as a budget does not do as all that is free."""
    free = smallest(model, calib, tmp_path / "out")

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (free * MIB, free * MIB))

    done = quantize(model, calib, tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 2
    assert f"80 % of what is free is {free * 4 // 5}MiB" in done.stderr
    assert not (tmp_path / "out").exists()


def test_odd_budgets(model, calib, tmp_path):
    done = quantize(model, calib, tmp_path / "a", "--max-memory", "cpu=900000GiB,7=1GiB")
    assert done.returncode == 0, done.stderr
    assert "there is no device 7" in done.stderr and "more than this machine has" in done.stderr
    for text, message in (("cpu=8", "has no unit"), ("gpu=1GiB", "device 'gpu'"),
                          ("cpu=25gb", "ambiguous")):
        done = quantize(model, calib, tmp_path / "b", "--max-memory", text)
        assert done.returncode == 2 and message in done.stderr, done.stderr


def test_flag_wins_over_recipe(model, calib, tmp_path):
    (tmp_path / "r.yaml").write_text("run: {max_memory: {cpu: 1MiB, 0: 25GiB}}")
    recipe = ["--recipe", tmp_path / "r.yaml"]
    assert quantize(model, calib, tmp_path / "a", *recipe).returncode == 2
    done = quantize(model, calib, tmp_path / "b", *recipe, "--max-memory", "cpu=1GiB")
    assert done.returncode == 0, done.stderr


# ---- dry run

def test_dry_run_by_hand(wide, tmp_path):
    """Amounts from the shapes: 600 tokens, one layer."""
    model, calib = wide
    plan = dry_run(model, calib, "--no-probe")
    weights = sum(n * k for n, k in WIDE_LINEARS.values())
    assert (plan["samples"], plan["tokens"], plan["layers"], plan["passes"]) == (5, 600, 1, 1)
    assert plan["operations"]["int8"] == 2 * 600 * weights
    assert plan["operations"]["float"] == 4 * 1024 * 5 * 120 * 121 / 2  # attention
    size = (model / "model.safetensors").stat().st_size
    assert plan["disk"]["read"] == size
    done = quantize(model, calib, tmp_path / "out")
    written = json.loads(done.stdout)["bytes_out"]
    assert abs(plan["disk"]["written"] - written) < 0.01 * written
    assert plan["seconds"] is None and all(w["rate"] is None for w in plan["work"])
    # Five samples run as floats first; the layer is packed once and read twice.
    two = dry_run(model, calib, "--no-probe", "--disable-level", "L1")
    assert two["passes"] == 2
    embedding = 2 * 260 * 1024
    assert two["disk"]["read"] == size + 2 * weights + embedding
    work = {w["name"]: w["amount"] for w in two["work"]}
    assert work["float products"] == 2 * 600 * weights
    assert work["packing weights"] == weights


def test_dry_run_of_gptq_by_hand(wide):
    """A Hessian of each of four inputs, half of its k^2 products of two operations for each of 600 tokens;
    its factor; and of each row of a weight all products of its errors. Attention runs for the scale of
    what o_proj reads, for its Hessian, and to go on."""
    plan = dry_run(*wide, "--no-probe", *GPTQ)
    work = {w["name"]: w["amount"] for w in plan["work"]}
    read = (1024, 1024, 1024, 4096)
    rounded = sum(600 * k * k + k ** 3 / 3 for k in read) + sum(
        n * k * k for n, k in WIDE_LINEARS.values())
    assert abs(work["rounding by inputs"] - rounded) < 1e-9 * rounded
    assert work["attention"] == 3 * 4 * 1024 * 5 * 120 * 121 / 2
    assert work["INT8 products"] == 2 * 600 * sum(n * k for n, k in WIDE_LINEARS.values())


def test_dry_run_touches_nothing(model, calib, tmp_path):
    out = tmp_path / "out"
    done = run_tare("quantize", model, "--out", out, "--calib", calib, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not out.exists()
    for word in ("memory", "disk", "passes", "operations", "time        about"):
        assert word in done.stdout
    done = run_tare("quantize", model, "--calib", calib, "--dry-run", "--max-memory", "cpu=2MiB")
    assert done.returncode == 2 and "is too small" in done.stderr


def test_probe_measures_what_the_recipe_needs(model, calib):
    plan = dry_run(model, calib, "--recipe", "llama3.1-70b")
    assert plan["seconds"] > 0
    for work in plan["work"]:
        assert work["amount"] == 0 or work["rate"] > 0, work["name"]


@pytest.mark.parametrize("flags", RECIPES + [
    ["--scheme", "w8a16"], ["--scheme", "w8a8_dynamic", "--fa-quant"],
    ["--disable-names", "model.layers.0*", "--mix", "*.mlp.*=w8a8_dynamic"],
    ["--anti-method", "m3", "--disable-anti-names", "model.layers.0.self_attn.q_proj"]],
    ids=" ".join)
def test_probe_of_any_recipe(model, calib, flags):
    """Every rate, and no word about what a slice met that the model may not have."""
    probed = run_tare("quantize", model, "--calib", calib, "--dry-run", "--json", *flags)
    silent = run_tare("quantize", model, "--calib", calib, "--dry-run", "--json", "--no-probe", *flags)
    assert probed.returncode == 0 and probed.stderr == silent.stderr
    for work in json.loads(probed.stdout)["work"]:
        assert work["amount"] == 0 or work["rate"] > 0, work["name"]


def sparse_70b(folder, layers=80):
    """A checkpoint of Llama-3.1-70B's geometry that is headers alone: 140 GB, all of them holes."""
    config = tiny.CONFIG | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": layers,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": False}
    shapes = tiny.tensor_shapes(config) | {"lm_head.weight": (128256, 8192)}
    folder.mkdir()
    tiny.write_config(folder, **config)
    weight_map, names = {}, list(shapes)
    for s in range(0, len(names), 25):
        file, header, offset = f"model-{s:05d}.safetensors", {}, 0
        for name in names[s:s + 25]:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]),
                            "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            f.truncate(8 + len(text) + offset)
        weight_map |= dict.fromkeys(header, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "ids.json").write_text(json.dumps([[i % 1000 for i in range(240)]] * 50))
    return folder


def test_70b_is_planned_from_headers(tmp_path):
    """In less than a second of CPU, in less than 100 MiB; it fits where it must."""
    model = sparse_70b(tmp_path / "model")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    plan = dry_run(model, model / "ids.json", "--no-probe", "--recipe", "llama3.1-70b",
                   "--max-memory", "cpu=8GiB")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    memory = plan["memory"]
    assert memory["peak"] <= 8 << 30 and memory["smallest"] <= 4 << 30
    layer = 2 * (8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672)
    everything = 80 * layer + 2 * 2 * 128256 * 8192
    assert abs(plan["disk"]["read"] - (everything + 80 * layer + 2 * 128256 * 8192)) < 1e-4 * everything
    assert plan["tokens"] == 12000 and plan["passes"] == 2


def test_70b_plan_stays_small(tmp_path):
    model = sparse_70b(tmp_path / "model")

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (100 * MIB, 100 * MIB))

    done = run_tare("quantize", model, "--calib", model / "ids.json", "--dry-run", "--no-probe",
                    "--max-memory", "cpu=8GiB", "--threads", 2, preexec_fn=limit)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", ["deepseek-v3", "kimi-k2"])
def test_mixtures_are_planned_from_headers(shape, tmp_path):
    """61 layers, 70,000 linears: in less than two seconds of CPU and 200 MiB, and they fit in 4 GiB."""
    model = tmp_path / "model"
    subprocess.run([sys.executable, EXAMPLES / "make_random_checkpoint.py", model, "--shape", shape,
                    "--layers", "61", "--data-layers", "0", "--samples", "16"], check=True,
                   stdout=subprocess.DEVNULL)
    command = [TARE_BIN, "quantize", model, "--calib", model / "calib_ids.json", "--dry-run",
               "--no-probe", "--json", "--max-memory", "cpu=4GiB", "--threads", "2"]
    # By way of a small process: a child begins with the peak of the one that it was forked from.
    helper = ("import os, subprocess, sys; p = subprocess.Popen(sys.argv[1:], stderr=subprocess.DEVNULL);"
              "_, s, u = os.wait4(p.pid, 0);"
              "print(s, u.ru_utime + u.ru_stime, u.ru_maxrss, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", helper, *map(str, command)], capture_output=True,
                          text=True, check=True)
    code, seconds, peak = map(float, done.stderr.split())
    assert code == 0 and seconds < 2 and peak * 1024 < 200 * MIB
    plan = json.loads(done.stdout)
    assert plan["tokens"] == 16 * 256 and plan["memory"]["peak"] <= 4 << 30
    # attention and shared expert; 8 of the routed ones (spec/models.md 1.9); kv_b_proj stays float
    h, heads, dense = 7168, {"deepseek-v3": 128, "kimi-k2": 64}[shape], {"deepseek-v3": 3, "kimi-k2": 1}
    attention = h * (1536 + 512 + 64) + 1536 * heads * 192 + heads * 128 * h
    passed = 61 * attention + dense[shape] * 3 * h * 18432 + (61 - dense[shape]) * 9 * 3 * h * 2048
    assert plan["operations"]["int8"] == pytest.approx(2 * 16 * 256 * passed, rel=1e-9)


def test_disk_rate_of_holes_is_unknown(tmp_path):
    model = sparse_70b(tmp_path / "model", layers=1)
    plan = dry_run(model, model / "ids.json", "--samples", 1)
    rates = {w["name"]: w["rate"] for w in plan["work"]}
    assert rates["reading"] is None and rates["INT8 products"] > 0
    done = run_tare("quantize", model, "--calib", model / "ids.json", "--samples", 1, "--dry-run")
    assert "more than" in done.stdout and re.search("reading .* unknown rate", done.stdout)


# ---- the head

HEAD = (65539, 1024)  # rows and columns, of this block again and again
BLOCK = np.random.default_rng(1).normal(0, 0.1, 70001).astype(np.float32)
BLOCK_LARGEST = np.abs(tensor_file.round_to(BLOCK, "BF16")).max()


@pytest.fixture(scope="module")
def large_head(tmp_path_factory):
    """A head of 64 MiB in 8 bits, tied, on one small layer."""
    folder = tmp_path_factory.mktemp("head")
    config = tiny.CONFIG | {"hidden_size": HEAD[1], "vocab_size": HEAD[0], "num_hidden_layers": 1}
    tensors = {name: ("BF16", np.resize(BLOCK, shape) + np.float32(len(shape) == 1))
               for name, shape in tiny.tensor_shapes(config).items()}
    model = tiny.write_checkpoint(folder / "model", tensors, **config)
    (folder / "ids.json").write_text(json.dumps([[i % 250 for i in range(40)]] * 2))
    return model, folder / "ids.json"


@pytest.mark.parametrize("flags", [[], ["--mm-tensor"], ["--mix", "lm_head=w8a16"]], ids=" ".join)
def test_a_quantized_head_is_never_whole(flags, large_head, tmp_path):
    """Neither its 128 MiB as they are stored nor its integers: what is planned beside the files and
    the program, and what the kernel measures, is far below; the numbers are those of section 3."""
    model, calib = large_head
    flags = ["--no-disable-last-linear", "--threads", 1, *flags]
    memory = dry_run(model, calib, "--no-probe", *flags)["memory"]
    assert memory["peak"] - memory["fixed"] - memory["output"] < 48 * MIB
    done = quantize(model, calib, tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_resident_bytes"] < 90 * MIB
    part = {name.removeprefix("lm_head."): x for name, (_, x) in
            tensor_file.read_folder(tmp_path / "out").items() if name.startswith("lm_head.")}
    rows = np.arange(0, HEAD[0], 61)
    w = tensor_file.round_to(BLOCK[(rows[:, None] * HEAD[1] + np.arange(HEAD[1])) % BLOCK.size],
                             "BF16")
    largest = np.abs(w).max(1) if "--mm-tensor" not in flags else np.full(rows.size, BLOCK_LARGEST)
    scale = tensor_file.round_to(largest / np.float32(127), "BF16")
    q = part["weight"][rows].astype(int)
    assert np.array_equal(part["weight_scale"].ravel()[rows], scale)
    assert np.array_equal(q, np.clip(np.rint(w / scale[:, None]), -127, 127))
    assert ("deq_scale" in part) == ("--mix" not in flags)
    if "deq_scale" in part:
        assert np.array_equal(part["deq_scale"][rows], part["input_scale"] * scale)
        assert np.array_equal(part["quant_bias"][rows], -part["input_offset"] * q.sum(1))


# ---- generation


def run_within(flags, mib):
    """With a budget that the kernel enforces too."""
    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (mib * MIB, mib * MIB))

    return run_tare(*flags, "--max-memory", f"cpu={mib}MiB", preexec_fn=limit)


def test_generation_keeps_within_the_budget(tmp_path):
    """Weights of 88 MiB: what does not fit is read for each token, with the same text. The smallest
    budget that a refusal names works."""
    config = {**tiny.CONFIG, "hidden_size": 512, "intermediate_size": 2048,
              "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2,
              "head_dim": 64}
    folder = tmp_path / "model"
    tiny.write_checkpoint(folder, tiny.make_tensors(config), **config)
    flags = ["generate", folder, "The ferry", "--max-new-tokens", 4, "--json", "--threads", 1]
    expected = run_tare(*flags)
    assert expected.returncode == 0, expected.stderr
    refused = run_tare(*flags, "--max-memory", "cpu=1MiB")
    assert refused.returncode == 2
    program = int(re.search(r"the program itself takes (\d+) MiB", refused.stderr).group(1))
    little = program + 5
    refused = run_within(flags, little)
    assert refused.returncode == 2 and refused.stdout == ""
    assert f"budget of {little} MiB is too small" in refused.stderr
    smallest = int(re.search(r"smallest that works here is (\d+) MiB", refused.stderr).group(1))
    assert little < smallest < 80
    for mib in (smallest, 80, 250):
        done = run_within(flags, mib)
        assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr
    assert run_within(flags, smallest - 1).returncode == 2

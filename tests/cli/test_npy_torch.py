"""npy files of torch tensors, without torch: a pickle reader that knows its few functions."""
import io
import json
import pickle
import struct

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import DATA, run_tare

STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
            "CharStorage": "I8", "IntStorage": "I32", "LongStorage": "I64"}


class Storage(pickle.Unpickler):
    """torch.save's older form: (tag, numpy array of the bits)."""

    def find_class(self, module, name):
        assert module == "torch"
        return STORAGES[name]

    def persistent_load(self, saved):
        return saved


def load_from_bytes(data):
    f = io.BytesIO(data)
    magic, version, system, saved, keys = (Storage(f).load() for _ in range(5))
    assert (magic, version, system["little_endian"]) == (0x1950a86a20f9469cfc6c, 1001, True)
    kind, tag, key, place, count, view = saved
    assert (kind, place, view, keys) == ("storage", "cpu", None, [key])
    assert struct.unpack("<Q", f.read(8)) == (count,)
    return tag, np.frombuffer(f.read(), tensor_file.NUMPY[tag], count)


def rebuild(storage, offset, shape, strides, requires_grad, hooks):
    tag, bits = storage
    steps = [s * bits.itemsize for s in strides]
    x = np.lib.stride_tricks.as_strided(bits[offset:], shape, steps)
    assert not requires_grad and not hooks
    return tensor_file.Tensor(tag, tensor_file.bf16_to_f32(x) if tag == "BF16" else x)


class Values(pickle.Unpickler):
    KNOWN = {("torch._utils", "_rebuild_tensor_v2"): rebuild,
             ("torch.storage", "_load_from_bytes"): load_from_bytes}

    def find_class(self, module, name):
        return self.KNOWN.get((module, name)) or super().find_class(module, name)


def load(path):
    with open(path, "rb") as f:
        assert np.lib.format.read_magic(f) == (1, 0)
        np.lib.format.read_array_header_1_0(f)
        return Values(f).load().item()


@pytest.fixture
def out(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    prompts = tiny.write_prompts(tmp_path / "prompts.jsonl")
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", prompts,
                    "--save", "safe_tensor,numpy", "--npy-values", "torch")
    assert done.returncode == 0 and "become float32" not in done.stderr, done.stderr
    return tmp_path / "out"


def test_tensors_equal_those_of_safetensors(out):
    stored = tensor_file.read_folder(out)
    tags, count = set(), 0
    for path in out.glob("*.npy"):
        part = path.stem.replace("quant_weight", "weight")
        for key, got in load(path).items():
            want = stored[f"{key}.{part}" if f"{key}.{part}" in stored else key]
            assert got.tag == want.tag and got.data.shape == want.data.shape, key
            np.testing.assert_array_equal(got.data, want.data, key)
            tags.add(got.tag)
            count += 1
    assert count == len(stored) and {"BF16", "I8", "I32"} <= tags


def test_verify_judges_them(out):
    done = run_tare("verify", out)
    assert done.returncode == 0, done.stdout
    path = out / "quant_bias.npy"
    key = next(iter(load(path)))
    data = bytearray(path.read_bytes())
    at = data.index(b"Storage\n", data.index(key.encode()))
    data[data.index(b"q\x01a.", at) + 12] ^= 1  # a bit of the first number, behind the count
    path.write_bytes(data)
    done = run_tare("verify", out)
    assert done.returncode == 1 and f"{key}.quant_bias" in done.stdout


@pytest.mark.parametrize("protocol", (3, 4))
def test_inspect(protocol):
    """What tests/data/make_npy_torch.py had torch and numpy write."""
    path = DATA / f"npy/torch-protocol{protocol}.npy"
    report = json.loads(run_tare("inspect", path, "--json").stdout)
    assert report == {"kind": "npy", "values": "numpy and torch", "tensors_total": 3, "tensors": {
        "w": {"dtype": "BF16", "shape": [1, 2], "bytes": 4},
        "v": {"dtype": "I8", "shape": [2], "bytes": 2},
        "n": {"dtype": "F32", "shape": [1], "bytes": 4}}}


def test_what_would_run_is_refused(tmp_path):
    class Command:
        def __reduce__(self):
            return print, ("run",)

    boxed = np.empty((), dtype=object)
    boxed[()] = {"a": Command()}
    np.save(tmp_path / "bad.npy", boxed)
    done = run_tare("inspect", tmp_path / "bad.npy")
    assert done.returncode != 0 and "builtins.print, which is refused" in done.stderr

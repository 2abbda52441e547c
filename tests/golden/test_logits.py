"""The C forward pass in FP32 against logits that transformers computed (tests/data)."""
import json

import numpy as np
import pytest
import reference_model
import tensor_file
from conftest import GOLDEN, SHARED

TOLERANCE = 1e-4


def find_models():
    """{name: its folder}: those carried, and any others beside the checkout."""
    return {path.parent.name: path.parent for root in (SHARED / "golden", GOLDEN)
            for path in sorted(root.glob("*/float_logits.safetensors"))}


MODELS = find_models()


def expected(model):
    """(token ids, logits) of each recorded sample. Keys: the sample's number, or `logits`,
    `logits_1`; `logits_mscale` where recorded, with yarn's squared factor that transformers leaves
    out for DeepSeek-V2. (`mtp_logits` are of a layer that a forward pass leaves out.)"""
    recorded = tensor_file.read(MODELS[model] / "float_logits.safetensors")
    own = MODELS[model] / "calib_ids.json"
    ids = json.loads((own if own.exists() else GOLDEN / "calib_ids.json").read_text())
    kind = "logits_mscale" if "logits_mscale" in recorded else "logits"
    numbers = {f"{kind}": 0, f"{kind}_1": 1} | {str(i): i for i in range(len(ids))}
    found = [(ids[numbers[key]], tensor.data.reshape(-1, tensor.data.shape[-1]))
             for key, tensor in recorded.items() if key in numbers]
    assert len(found) == 2
    return found


def folders(model):
    """The same weights in several forms, too."""
    return sorted(path for path in MODELS[model].glob("model*") if path.is_dir())


@pytest.mark.parametrize("model", MODELS)
def test_float_logits(model, library):
    for folder in folders(model):
        with library.model(folder) as m:
            for ids, want in expected(model):
                assert np.abs(m.logits(ids) - want).max() <= TOLERANCE


@pytest.mark.parametrize("model", reference_model.GOLDEN_MODELS)
def test_numpy_model_agrees(model):
    """The reference of test_golden.py is itself right."""
    config = json.loads((GOLDEN / model / "model" / "config.json").read_text())
    tensors = tensor_file.read_folder(GOLDEN / model / "model")
    for ids, want in expected(model):
        assert np.abs(reference_model.logits(config, tensors, ids) - want).max() <= TOLERANCE

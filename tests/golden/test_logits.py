"""The C forward pass in FP32 against logits that transformers computed (tests/data)."""
import json

import numpy as np
import pytest
import reference_model
import tensor_file
from conftest import GOLDEN

MODELS = sorted(path.parent.name for path in GOLDEN.glob("*/float_logits.safetensors"))
TOLERANCE = 1e-4
IDS = json.loads((GOLDEN / "calib_ids.json").read_text())


def expected(model):
    """(token ids, logits) of each recorded sample."""
    for key, tensor in tensor_file.read(GOLDEN / model / "float_logits.safetensors").items():
        yield IDS[int(key)], tensor.data


@pytest.mark.parametrize("model", MODELS)
def test_float_logits(model, library):
    with library.model(GOLDEN / model / "model") as m:
        for ids, want in expected(model):
            assert np.abs(m.logits(ids) - want).max() <= TOLERANCE


@pytest.mark.parametrize("model", MODELS)
def test_numpy_model_agrees(model):
    """The reference of test_golden.py is itself right."""
    config = json.loads((GOLDEN / model / "model" / "config.json").read_text())
    tensors = tensor_file.read_folder(GOLDEN / model / "model")
    for ids, want in expected(model):
        assert np.abs(reference_model.logits(config, tensors, ids) - want).max() <= TOLERANCE

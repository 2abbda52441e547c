"""Scores of layers (LayerSelector's) against the numpy model, whose inputs of every linear are
measured by the formulas alone."""
import json

import numpy as np
import pytest
import reference_model
import tensor_file
from conftest import GOLDEN

IDS = json.loads((GOLDEN / "calib_ids.json").read_text())


class Watched(reference_model.Model):
    """Keeps the input of every linear, call by call."""

    def __init__(self, *args):
        super().__init__(*args)
        self.inputs = {}

    def linear(self, name, x):
        self.inputs.setdefault(name, []).append(x.astype(np.float32))
        return super().linear(name, x)


def std_score(calls):
    stds = [np.std(x.astype(float) - (x.max(axis=0) + x.min(axis=0)), ddof=1) for x in calls]
    return max(np.abs(x).max() for x in calls) / max(stds)


def quantile_score(calls):
    parts = [np.sort(x, axis=None) for x in calls]
    x = np.sort(np.concatenate([p if p.size < 100 else p[50::100] for p in parts]))
    quarter = x.size // 4
    return 2 * np.abs(x).max() / 254 / (x[3 * quarter] - x[quarter])


@pytest.fixture(scope="module", params=reference_model.GOLDEN_MODELS)
def inputs(request):
    folder = GOLDEN / request.param / "model"
    model = Watched(json.loads((folder / "config.json").read_text()),
                    tensor_file.read_folder(folder))
    for ids in IDS:
        model.logits(ids)
    return folder, model.inputs


@pytest.mark.parametrize("method, score, tolerance", [
    ("quantile", quantile_score, 1e-4), ("std", std_score, 1e-5)])
def test_scores(inputs, method, score, tolerance, library):
    folder, calls = inputs
    found = library.layer_scores(folder, IDS, method)
    assert sorted(found) == sorted(calls)
    assert list(found)[-1] == "lm_head"
    for name, value in found.items():
        assert value == pytest.approx(score(calls[name]), rel=tolerance), name
    for layer in range(4):
        p = f"model.layers.{layer}."
        assert found[p + "self_attn.q_proj"] == found[p + "self_attn.v_proj"]
        assert found[p + "mlp.gate_proj"] == found[p + "mlp.up_proj"]


def test_few_samples_differ(inputs, library):
    folder, _ = inputs
    assert library.layer_scores(folder, IDS, "std") != library.layer_scores(folder, IDS[:2], "std")

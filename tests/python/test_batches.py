"""Batches of padded prompts as elements of calib_data: in compat mode each is one sample, as it is for
msModelSlim, whose scales and offsets these are (tests/data/make_batches.py); else a row is one."""
import json

import numpy as np
import pytest
import tensor_file
from conftest import GOLDEN, output_files

import tare

CASES = json.loads((GOLDEN / "batches.json").read_text())
MIX = {"*.mlp.*": "w8a8_dynamic", "*": "w8a8"}
FLOAT = {"qwen3_moe": [f"model.layers.{i}.mlp.gate" for i in (0, 2)],
         "deepseek_v3": [f"model.layers.{i}.self_attn.kv_b_proj" for i in range(3)]}


def prompts_of(name):
    ids = GOLDEN / name / "calib_ids.json"
    return json.loads((ids if ids.exists() else GOLDEN / "calib_ids.json").read_text())


def batch(prompts, front=False):
    """{"input_ids", "attention_mask"}, padded behind (in front) with token 1."""
    longest = max(map(len, prompts))
    pads = [[0] * (longest - len(p)) for p in prompts]
    rows = [pad + [2] * len(p) if front else [2] * len(p) + pad for p, pad in zip(prompts, pads)]
    mask = np.array(rows) // 2
    ids = np.ones(mask.shape, np.int64)
    for row, kept, prompt in zip(ids, mask, prompts):
        row[kept == 1] = prompt
    return {"input_ids": ids, "attention_mask": mask}


def quantize(folder, name, data, compat, act_method=1, anti_method=None):
    model = tare.load(GOLDEN / name / "model", dtype="float32")
    if anti_method:
        tare.AntiOutlier(model, data, tare.AntiOutlierConfig(anti_method=anti_method),
                         compat=compat).process()
    config = tare.QuantConfig(act_method=act_method, mm_tensor=False,
                              disable_names=FLOAT.get(name))
    calibrator = tare.Calibrator(model, config, calib_data=data, compat=compat,
                                 mix_cfg=MIX if name == "qwen3_moe" else None)
    calibrator.run()
    calibrator.save(folder, save_type=["safe_tensor"])
    return calibrator.result


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['model']}-act{c['act_method']}")
def test_as_msmodelslim(case, tmp_path):
    prompts = prompts_of(case["model"])
    data = [batch(prompts[:4]), batch(prompts[4:])]
    result = quantize(tmp_path, case["model"], data, "msmodelslim", case["act_method"],
                      case["anti_method"])
    assert result["samples"] == 2
    assert result["tokens"] == sum(element["input_ids"].size for element in data)
    tensors = tensor_file.read_folder(tmp_path)
    found = {key[:-len(".input_scale")] for key in tensors if key.endswith(".input_scale")}
    assert found == set(case["inputs"])
    for linear, (scale, offset) in case["inputs"].items():  # routers make more of a last place
        rel = 2e-3 if case["model"] == "deepseek_v3" else 1e-3
        assert tensors[f"{linear}.input_scale"][1].item() == pytest.approx(scale, rel=rel)
        assert tensors[f"{linear}.input_offset"][1].item() == offset


def test_rows_are_samples_otherwise(tmp_path):
    """Without compat padding leaves no trace, on whichever side."""
    prompts = prompts_of("llama")
    rows = [[np.array(p)] for p in prompts]
    quantize(tmp_path / "rows", "llama", rows, None)
    for name, front in (("behind", False), ("front", True)):
        result = quantize(tmp_path / name, "llama", [batch(prompts[:4], front),
                                                     batch(prompts[4:], front)], None)
        assert result["samples"] == len(prompts)
        assert output_files(tmp_path / name) == output_files(tmp_path / "rows")


def test_padding_in_front(tmp_path, caplog):
    """In compat mode, too, that is told apart: msModelSlim's own numbers for it are not had."""
    prompts = prompts_of("llama")
    result = quantize(tmp_path / "front", "llama", [batch(prompts[:4], front=True)], "msmodelslim")
    assert result["samples"] == 4
    assert "calib_data[0] is padded in front" in caplog.text
    quantize(tmp_path / "rows", "llama", [[np.array(p)] for p in prompts[:4]], "msmodelslim")
    assert output_files(tmp_path / "front") == output_files(tmp_path / "rows")


def test_rows_of_equal_length_do_not_see_each_other(tmp_path):
    """The same prompt twice in a batch is the prompt once."""
    ids = np.array(prompts_of("llama")[0])
    quantize(tmp_path / "twice", "llama", [[np.stack([ids, ids])]], "msmodelslim")
    quantize(tmp_path / "once", "llama", [[ids]], "msmodelslim")
    twice, once = (output_files(tmp_path / name, record=False) for name in ("twice", "once"))
    assert twice == once

"""The package on mixtures of experts, without torch: the run against the command, generation from FP8
against the checkpoint that it stands for, and what is the default for DeepSeek."""
import json

import pytest
from conftest import GOLDEN, output_files, run_tare

import tare

MODELS = ["qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v2_lite", "deepseek_v3", "deepseek_v3_fp8"]
DEEPSEEK_MIX = ["--mix", "*.mlp.*=w8a8_dynamic,*=w8a8"]


def samples_of(name):
    return GOLDEN / name / "calib_ids.json"


def data_of(name):
    return [[ids] for ids in json.loads(samples_of(name).read_text())]


@pytest.mark.parametrize("name", MODELS)
def test_run_equals_the_command(name, tmp_path):
    model, data = tare.load(GOLDEN / name / "model"), data_of(name)
    tare.AntiOutlier(model, data, tare.AntiOutlierConfig(anti_method="m6")).process()
    calibrator = tare.Calibrator(model, tare.QuantConfig(mm_tensor=False), calib_data=data)
    calibrator.run()
    calibrator.save(tmp_path / "py", save_type=["ascendv1"])
    done = run_tare("quantize", GOLDEN / name / "model", "--out", tmp_path / "cli", "--calib",
                    samples_of(name), "--anti-method", "m6", "--save", "ascendv1",
                    *(DEEPSEEK_MIX if "deepseek" in name else []))
    assert done.returncode == 0, done.stderr
    py, cli = (output_files(tmp_path / out, record=False) for out in ("py", "cli"))
    assert py == cli


def test_mix_of_deepseek(tmp_path):
    """W8A8 without mix_cfg: per token in feed-forwards, per tensor in attention; {} asks for none."""
    model, data = tare.load(GOLDEN / "deepseek_v3" / "model"), data_of("deepseek_v3")
    config = tare.QuantConfig(mm_tensor=False)
    assert tare.Calibrator(model, config, data).mix_cfg == {"*.mlp.*": "w8a8_dynamic", "*": "w8a8"}
    assert tare.Calibrator(model, config, data, mix_cfg={}).mix_cfg == {}
    dynamic = tare.QuantConfig(mm_tensor=False, is_dynamic=True)
    assert tare.Calibrator(model, dynamic, data).mix_cfg == {}
    other = tare.load(GOLDEN / "qwen3_moe" / "model")
    assert tare.Calibrator(other, config, data).mix_cfg == {}


def test_generation_from_fp8():
    """The text of the numbers that the codes stand for, whatever holds them."""
    prompts = json.loads(samples_of("deepseek_v3_fp8").read_text())[:3]
    texts = []
    for form in ("model", "model_bf16"):
        model = tare.load(GOLDEN / "deepseek_v3_fp8" / form)
        texts.append([model.generate(input_ids=[ids], max_new_tokens=12, do_sample=False).tolist()
                      for ids in prompts])
    assert texts[0] == texts[1]
    assert all(len(row[0]) > len(ids) for row, ids in zip(texts[0], prompts))


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_names_of_weight_files(name, tmp_path):
    """safetensors_name with ascendv1: engines take any; the description keeps the one they know."""
    model, data = tare.load(GOLDEN / name / "model"), data_of(name)
    calibrator = tare.Calibrator(model, tare.QuantConfig(mm_tensor=False), calib_data=data)
    calibrator.run()
    for names in ({}, {"safetensors_name": "w.safetensors", "json_name": "d.json"}):
        calibrator.save(tmp_path, save_type=["ascendV1"], part_file_size=1, **names)
        stem = "w" if names else "quant_model_weights"
        assert sorted(p.name for p in tmp_path.glob("*.safetensors*")) == [
            f"{stem}-00001-of-00001.safetensors", f"{stem}.safetensors.index.json"]
        assert (tmp_path / "quant_model_description.json").is_file()
        assert run_tare("verify", tmp_path, "--base", GOLDEN / name / "model").returncode == 0

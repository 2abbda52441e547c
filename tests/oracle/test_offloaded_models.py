"""transformers models whose parameters accelerate keeps elsewhere, or that have none: the refusal
says so and names the way out."""
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tare

accelerate = pytest.importorskip("accelerate")


@pytest.fixture
def folder(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model")


def on_the_disk(folder, tmp_path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto",
                                                max_memory={"cpu": "40KiB"},
                                                offload_folder=tmp_path / "offload")


def without_values(folder, _tmp_path):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def with_hooks(folder, _tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)


@pytest.mark.parametrize("make,words", [(on_the_disk, "device meta"),
                                        (without_values, "device meta"),
                                        (with_hooks, "hooks of accelerate")])
@pytest.mark.parametrize("use", ["Calibrator", "AntiOutlier"])
def test_refused(make, words, use, folder, tmp_path):
    model, data = make(folder, tmp_path), [[torch.tensor([[1, 2]])]]
    with pytest.raises(tare.TareError, match=rf"{words}.*tare\.load\(path\)"):
        if use == "Calibrator":
            tare.Calibrator(model, tare.QuantConfig(), calib_data=data).run()
        else:
            tare.AntiOutlier(model, calib_data=data, cfg=tare.AntiOutlierConfig()).process()


def test_a_map_without_offload_is_taken(folder, tmp_path):
    """device_map="auto" with room for the model puts it where it is without."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")
    data = [[torch.tensor([[1, 2, 3]])]]
    calibrator = tare.Calibrator(model, tare.QuantConfig(), calib_data=data)
    calibrator.run()
    calibrator.save(str(tmp_path / "out"), save_type=["safe_tensor"])
    assert list((tmp_path / "out").glob("quant_model_description*"))

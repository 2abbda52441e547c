"""Scripts for mixtures of experts, as msModelSlim's own for DeepSeek and Qwen3-MoE use it: under
`python -m tare.run` they give what the command gives for the same settings (tests that need PyTorch).

TARE_MSMODELSLIM names a checkout of msModelSlim, whose two scripts then run as they are.
"""
import inspect
import json
import os
import pathlib

import pytest
import safetensors.torch
import tensor_file
import test_transformers
import tiny
import torch
from conftest import run_tare
from test_python_scripts import run_script
from transformers.models.deepseek_v3 import modeling_deepseek_v3

SCRIPT = '''
import functools
import json
import os
import sys
from unittest.mock import patch

import torch
import torch_npu

torch_npu.npu.set_compile_mode(jit_compile=False)

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ascend_utils import ResListToRelease
from ascend_utils.common.security import (get_valid_read_path, get_valid_write_path, json_safe_dump,
                                          json_safe_load, safe_copy_file, set_file_stat)
from ascend_utils.common.security.path import get_write_directory
from msmodelslim import NEW_PACKAGE_NAME, logger
from msmodelslim.pytorch.llm_ptq.accelerate_adapter import (PrepareWeight,
                                                            replace_device_align_hook_if_needed)
from msmodelslim.pytorch.llm_ptq.accelerate_adapter.hook_adapter import (
    get_offloaded_weights_loader_if_have)
from msmodelslim.pytorch.llm_ptq.accelerate_adapter.utils import judge_model_with_accelerate
from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig
from msmodelslim.utils.logging import LOGGER_FUNC, set_logger_level

family, path, prompts, out = sys.argv[1:5]


def batches(tokenizer, texts, size, device):
    parts = [texts[i:i + size] for i in range(0, len(texts), size)]
    encoded = [tokenizer(part, return_tensors="pt", padding=True).to(device) for part in parts]
    return [[value.to(device) for value in e.data.values()] for e in encoded]


def decode_fp8(model, index):
    """Weights that were loaded as their codes, times the scales of their blocks."""
    assert judge_model_with_accelerate(model)
    replace_device_align_hook_if_needed(model)
    for name, module in model.named_modules():
        scale = name + ".weight_scale_inv"
        if scale in index:
            from safetensors import safe_open
            assert not get_offloaded_weights_loader_if_have(module)
            assert not module._hf_hook.old_hook.offload
            device = module._hf_hook.old_hook.execution_device
            with safe_open(os.path.join(path, index[scale]), framework="pt") as file:
                scales = file.get_tensor(scale).to(device)
            n, k = module.weight.shape
            grid = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:n, :k]
            with ResListToRelease(PrepareWeight(module, post_force=True)), torch.no_grad():
                module.weight[:] = (module.weight.float() * grid).to(torch.bfloat16)


def main():
    set_logger_level("info")
    LOGGER_FUNC["info"](f"{NEW_PACKAGE_NAME} starts")
    folder = get_write_directory(out, write_mode=0o750)
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    if family == "deepseek":
        config.model_type = "deepseekv2"
    config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(path, config=config, use_fast=True,
                                              add_eos_token=True, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        path, config=config, local_files_only=True, torch_dtype="auto",
        attn_implementation="eager",
        device_map={"model.embed_tokens": 0, "model.layers": "cpu", "model.norm": "cpu",
                    "lm_head": 0})
    decode_fp8(model, json_safe_load(os.path.join(path, "model.safetensors.index.json"))["weight_map"])
    with open(get_valid_read_path(prompts, "json", is_dir=False)) as file:
        data = batches(tokenizer, json.load(file), 4, model.device)
    with torch.no_grad():
        cfg = AntiOutlierConfig(w_bit=8, a_bit=8, anti_method="m4", dev_type="npu",
                                dev_id=model.device.index)
        AntiOutlier(model, calib_data=data, cfg=cfg).process()
    mix, names = None, [f"model.layers.{i}.self_attn.kv_b_proj"
                        for i in range(config.num_hidden_layers)]
    if family == "qwen":
        mix = {"*.mlp.*": "w8a8_dynamic", "*": "w8a8"}
        names = [f"model.layers.{i}.mlp.gate" for i in range(config.num_hidden_layers)]
    quant = QuantConfig(a_bit=8, w_bit=8, disable_names=names, dev_type="npu",
                        dev_id=model.device.index, act_method=1, pr=1.0, w_sym=True,
                        mm_tensor=False)
    calibrator = Calibrator(model, quant, calib_data=data, disable_level="L0", mix_cfg=mix)
    calibrator.run()
    calibrator.save(folder, json_name="quant_model_description.json", save_type=["ascendV1"],
                    safetensors_name="quant_model_weight_w8a8_dynamic.safetensors",
                    part_file_size=4)
    name = get_valid_write_path(os.path.join(folder, "quant_model_description.json"), is_dir=False)
    description = json_safe_load(name)
    assert str(quant.model_quant_type.value) == "W8A8"
    assert quant.group_size == -1 and not quant.use_kvcache_quant and not quant.use_fa_quant
    json_safe_dump({**description, "model_quant_type": "W8A8_DYNAMIC"}, name, indent=4)
    extra = os.path.join(folder, "generation_config.json")
    safe_copy_file(os.path.join(path, "generation_config.json"), extra)
    set_file_stat(extra, "600")
    logger.info("done")


torch_npu.npu.init()
patch("transformers.modeling_utils.set_initialized_submodules", new=lambda *a: {}).start()
main()
'''
PROMPTS = ["The ferry leaves at six.", "Roll two dice: what is P(sum >= 9)?", "x", "Snow is cold.",
           "def f(x): return x", "Tea"]
TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128,
                    "eos_token": "<|end|>", "pad_token": "<|end|>",
                    "model_input_names": ["input_ids", "attention_mask"]}
NAMES = {"deepseek-v2-groups": "deepseek", "deepseek-v3": "deepseek", "qwen3-moe-experts": "qwen"}
WEIGHTS = "quant_model_weight_w8a8_dynamic"


def write_model(name, folder):
    test_transformers.make(name, folder, torch.bfloat16, max_shard_size="150KB")
    (folder / "tokenizer.json").write_text(json.dumps(tiny.make_tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    (folder.parent / "prompts.json").write_text(json.dumps(PROMPTS))
    close(folder)
    return folder


def close(folder):
    """Scripts demand that nobody else can write to what they read."""
    for path in (folder.parent, folder, *folder.parent.glob("*.json"), *folder.iterdir()):
        path.chmod(path.stat().st_mode & ~0o022)


def tensors_of(folder):
    return {name: (tensor[0], tensor[1].tobytes())
            for name, tensor in tensor_file.read_folder(folder).items()}


def description_of(folder):
    text = (folder / "quant_model_description.json").read_text()
    return {name: kind for name, kind in json.loads(text).items() if "." in name}


def assert_as_the_command(model, out, tmp_path, *flags):
    """`out` has the tensors and types of `tare quantize` with the same settings."""
    done = run_tare("quantize", model, "--out", tmp_path / "cli", "--calib",
                    tmp_path / "prompts.json", "--anti-method", "m4", "--mix",
                    "*.mlp.*=w8a8_dynamic,*=w8a8", "--save", "ascendv1", *flags)
    assert done.returncode == 0, done.stderr
    assert tensors_of(out) == tensors_of(tmp_path / "cli")
    assert description_of(out) == description_of(tmp_path / "cli")
    assert {"W8A8", "W8A8_DYNAMIC", "FLOAT"} == set(description_of(out).values())


@pytest.mark.parametrize("name", NAMES)
def test_the_way_of_the_scripts(name, tmp_path):
    model, out = write_model(name, tmp_path / "model"), tmp_path / "out"
    done = run_script(tmp_path, SCRIPT, NAMES[name], model, tmp_path / "prompts.json", out)
    assert done.returncode == 0, done.stderr
    assert "device 0 in device_map: tare computes on the CPU" in done.stderr
    assert {p.name for p in out.glob(WEIGHTS + "*")} == {
        WEIGHTS + "-00001-of-00001.safetensors", WEIGHTS + ".safetensors.index.json"}
    assert_as_the_command(model, out, tmp_path)
    assert run_tare("verify", out, "--base", model).returncode == 0
    for path in out.iterdir():
        assert path.stat().st_mode & 0o037 == 0, path


def test_batches_are_samples_of_compat(tmp_path):
    """With --compat two elements of calib_data are two samples; otherwise its six rows are six."""
    model = write_model("qwen3-moe-experts", tmp_path / "model")
    for flags, samples in (((), 6), (("--compat",), 2)):
        out = tmp_path / f"out{samples}"
        done = run_script(tmp_path, SCRIPT, "qwen", model, tmp_path / "prompts.json", out,
                          flags=flags)
        assert done.returncode == 0, done.stderr
        assert f"{samples} calibration samples" in done.stderr
        record = json.loads((out / "tare_run.json").read_text())
        assert record["calibration"]["samples"] == samples


def to_fp8(folder):
    """Makes FP8 of all linears but the head and the router, as DeepSeek-V3 comes; without the
    `quantization_config`, as msModelSlim's guide has it, for transformers would not load it."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in sorted(set(index["weight_map"].values())):
        tensors = safetensors.torch.load_file(folder / file)
        for name in [n for n in tensors if "_proj" in n and n.endswith(".weight")]:
            weight = tensors[name].float()
            n, k = weight.shape
            grid = torch.nn.functional.pad(weight, (0, -k % 128, 0, -n % 128))
            blocks = grid.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
            scales = blocks.abs().amax(dim=(1, 3)) / 448
            wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:n, :k]
            tensors[name] = (weight / wide).to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scales
            index["weight_map"][name + "_scale_inv"] = file
        safetensors.torch.save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_fp8(folder):
    """The checkpoint, and beside it one whose config says what it is, for the command."""
    to_fp8(write_model("deepseek-v3", folder))
    whole = folder.parent / "whole"
    whole.mkdir()
    for path in folder.iterdir():
        (whole / path.name).write_bytes(path.read_bytes())
    config = test_transformers.read_config(folder)
    config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3",
                                     "quant_method": "fp8", "weight_block_size": [128, 128]}
    test_transformers.write_config(whole, config)
    close(folder)
    return whole


def test_fp8_decoded_by_the_script(tmp_path):
    whole, out = write_fp8(tmp_path / "model"), tmp_path / "out"
    done = run_script(tmp_path, SCRIPT, "deepseek", tmp_path / "model", tmp_path / "prompts.json",
                      out)
    assert done.returncode == 0, done.stderr
    assert_as_the_command(whole, out, tmp_path)


MODELING = '''
import sys
from transformers import AutoModelForCausalLM
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig
from tare import load

path, out = sys.argv[1:3]
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, torch_dtype="auto")
kinds = {type(module).__name__ for module in model.modules()}
assert type(model).__module__.startswith("transformers_modules") and "MoEGate" in kinds
for name, source in (("theirs", model), ("folder", load(path))):
    calibrator = Calibrator(source, QuantConfig(mm_tensor=False),
                            calib_data=[[[1, 2, 3, 4]], [[7, 8, 9]]])
    calibrator.run()
    calibrator.save(f"{out}/{name}", save_type=["ascendV1"])
'''


def test_the_router_of_a_checkpoints_own_file(tmp_path):
    """DeepSeek's own modeling file calls the router MoEGate."""
    model = write_model("deepseek-v3", tmp_path / "model")
    text = inspect.getsource(modeling_deepseek_v3).replace("DeepseekV3TopkRouter", "MoEGate")
    text = text.replace("from ...", "from transformers.").replace(
        "from .configuration", "from transformers.models.deepseek_v3.configuration")
    (model / "modeling_deepseek.py").write_text(text)
    config = test_transformers.read_config(model)
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}
    test_transformers.write_config(model, config)
    done = run_script(tmp_path, MODELING, model, tmp_path)
    assert done.returncode == 0, done.stderr
    assert tensors_of(tmp_path / "theirs") == tensors_of(tmp_path / "folder")


# ---- msModelSlim's own scripts

SCRIPTS = {"deepseek": "DeepSeek/quant_deepseek_w8a8.py",
           "qwen": "Qwen3-MOE/quant_qwen_moe_w8a8.py"}


def run_theirs(family, tmp_path, *args):
    checkout = os.environ.get("TARE_MSMODELSLIM")
    script = pathlib.Path(checkout or "/nonexistent") / "example" / SCRIPTS[family]
    if not script.is_file():
        pytest.skip("TARE_MSMODELSLIM names no checkout of msModelSlim")
    call = f"import runpy, sys\nsys.path.insert(0, {str(script.parent)!r})\n" \
           f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    prompts = tmp_path / "prompts.json"
    return run_script(tmp_path, call, "--model_path", tmp_path / "model", "--save_path",
                      tmp_path / "out", "--anti_dataset", prompts, "--calib_dataset", prompts, *args)


@pytest.mark.parametrize("name", NAMES)
def test_their_script(name, tmp_path):
    model = write_model(name, tmp_path / "model")
    done = run_theirs(NAMES[name], tmp_path)
    assert done.returncode == 0, done.stderr
    assert_as_the_command(model, tmp_path / "out", tmp_path)


def test_their_script_on_fp8(tmp_path):
    whole = write_fp8(tmp_path / "model")
    done = run_theirs("deepseek", tmp_path, "--from_fp8")
    assert done.returncode == 0, done.stderr
    assert_as_the_command(whole, tmp_path / "out", tmp_path)

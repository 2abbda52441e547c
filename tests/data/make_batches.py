"""Writes golden/batches.json: input scales and offsets that msModelSlim 26.1.0 finds where an element of
calib_data is a padded batch. Needs torch 2.13.0, transformers 4.57.6 and msmodelslim 26.1.0; umask 027.

    python make_batches.py golden
"""
import json
import pathlib
import sys
import tempfile

import torch
from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# (model, act_method, anti_method)
CASES = [("llama", 1, None), ("llama", 2, None), ("qwen3", 1, "m4"), ("qwen3_moe", 1, "m4"),
         ("deepseek_v3", 1, "m4")]
# Experts are quantized per token; DeepSeek's are so by default.
MIX = {"qwen3_moe": {"*.mlp.*": "w8a8_dynamic", "*": "w8a8"}}
# Left as they are, as msModelSlim's own scripts have it.
FLOAT = {"qwen3_moe": [f"model.layers.{i}.mlp.gate" for i in (0, 2)],
         "deepseek_v3": [f"model.layers.{i}.self_attn.kv_b_proj" for i in range(3)]}


def batch(prompts):
    """[ids, attention_mask], padded behind with token 1."""
    longest = max(map(len, prompts))
    return [torch.tensor([p + [1] * (longest - len(p)) for p in prompts]),
            torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])]


def run(golden, name, act_method, anti):
    ids = golden / name / "calib_ids.json"
    prompts = json.loads((ids if ids.exists() else golden / "calib_ids.json").read_text())
    data = [batch(prompts[:4]), batch(prompts[4:])]
    model = AutoModelForCausalLM.from_pretrained(golden / name / "model", dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as out:
        if anti:
            AntiOutlier(model, calib_data=data, cfg=AntiOutlierConfig(anti_method=anti)).process()
        config = QuantConfig(act_method=act_method, mm_tensor=False,
                             disable_names=FLOAT.get(name))
        calibrator = Calibrator(model, config, calib_data=data, mix_cfg=MIX.get(name))
        calibrator.run()
        calibrator.save(out, save_type=["safe_tensor"])
        tensors = load_file(next(pathlib.Path(out).glob("*.safetensors")))
    linears = sorted(key[:-len(".input_scale")] for key in tensors if key.endswith(".input_scale"))
    return {linear: [tensors[f"{linear}.input_{kind}"].item() for kind in ("scale", "offset")]
            for linear in linears}


golden = pathlib.Path(sys.argv[1])
(golden / "batches.json").write_text(json.dumps(
    [{"model": m, "act_method": a, "anti_method": anti, "inputs": run(golden, m, a, anti)}
     for m, a, anti in CASES]).replace('{"model"', '\n{"model"') + "\n")

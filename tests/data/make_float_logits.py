#!/usr/bin/env python3
"""Writes golden/<model>/float_logits.safetensors: what transformers computes for the golden models.

FP32 logits of calibration samples 0 (24 tokens) and 4 (64 tokens, the longest), keys "0" and "4".
Models with samples of their own (calib_ids.json beside them) came with their logits. They let
`make test` judge the C forward without PyTorch. Needs tests/requirements-all.txt; run it
again when a model is added. Made with torch 2.13.0 and transformers 4.57.6.
"""
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
SAMPLES = (0, 4)


def main():
    ids = json.loads((GOLDEN / "calib_ids.json").read_text())
    for folder in sorted(GOLDEN.glob("*/model")):
        if (folder.parent / "calib_ids.json").exists():
            continue
        model = AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = {str(i): model(torch.tensor([ids[i]])).logits[0] for i in SAMPLES}
        save_file(logits, str(folder.parent / "float_logits.safetensors"))


if __name__ == "__main__":
    main()

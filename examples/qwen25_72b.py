"""Qwen2.5 72B to W8A8 with FA3, in 8 GiB of memory.

    python examples/qwen25_72b.py MODEL PROMPTS.jsonl OUT [--max-memory 8GiB]

The recipe qwen2.5-72b as a script: what the command
`tare quantize MODEL --recipe qwen2.5-72b --calib PROMPTS.jsonl --out OUT` does, with the same
result. PROMPTS.jsonl has an object a line with "inputs_pretokenized", "prompt" or "text".
"""
import argparse
import json

import tare

SAMPLES = 50


def read_prompts(path):
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:SAMPLES]
    return [row.get("inputs_pretokenized") or row.get("prompt") or row["text"] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("out")
    parser.add_argument("--max-memory", default="8GiB", help="of the host (default 8GiB)")
    args = parser.parse_args()

    model = tare.load(args.model, max_memory={"cpu": args.max_memory})
    tokenizer = tare.Tokenizer(args.model)
    data = [[tokenizer(text, return_tensors="np").input_ids] for text in read_prompts(args.prompts)]

    # Mean of each sample's extremes; down_proj stays float, its inputs have the largest outliers.
    config = tare.QuantConfig(act_method=1, mm_tensor=False,
                              disable_names=["model.layers.*.mlp.down_proj"]).fa_quant(fa_amp=0)
    calibrator = tare.Calibrator(model, config, calib_data=data)
    calibrator.run()
    calibrator.save(args.out, save_type=["ascendv1"])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Text generation: tare against transformers in FP32, in one sitting; prints CSV.

The same prompts, greedy, no end token, the same number of threads. `decode` is the time of all
tokens behind the first (a run with them less a run with one token alone), `prefill` that of the
first token. Runs of both alternate; a row holds medians. cpu_* are processor seconds, which stay
meaningful while other programs use the machine. `gb_s` is how fast tare's weights, BF16 as they
are stored, or transformers' FP32 copies pass by in each step; a core's own rate is the bound.
`same` counts the texts that are equal in both.

    bench/bench_generate.py --model build/demo/SmolLM2-135M-Instruct --prompts boolq.jsonl \\
        [--count 8] [--new 64] [--batch 1,8] [--runs 3] [--threads N] [--library libtare.so]
"""
import argparse
import ctypes
import json
import os
import pathlib
import statistics
import sys
import time

import measure

sys.path.insert(0, str(measure.ROOT / "tests"))


def timed(call):
    wall, cpu = time.monotonic(), time.process_time()
    result = call()
    return time.monotonic() - wall, time.process_time() - cpu, result


class Tare:
    name = "tare"

    def __init__(self, args):
        from libtare import Library
        self.library = Library(args.library, threads=args.threads)
        self.model = self.library.model(args.model)
        self.bytes = (pathlib.Path(args.model) / "model.safetensors").stat().st_size

    def generate(self, prompts, new, batch):
        return self.model.generate(prompts, max_new_tokens=new, batch=batch,
                                   eos_ids=(ctypes.c_uint32 * 1)(), num_eos=0)


class Transformers:
    name = "transformers"

    def __init__(self, args):
        import torch
        from transformers import AutoModelForCausalLM
        torch.set_num_threads(args.threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None
        self.bytes = sum(p.numel() * 4 for p in self.model.parameters())

    def generate(self, prompts, new, batch):
        texts = []
        for first in range(0, len(prompts), batch):
            group = prompts[first:first + batch]
            width = max(map(len, group))
            ids = self.torch.tensor([[0] * (width - len(p)) + p for p in group])
            mask = self.torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in group])
            with self.torch.no_grad():
                out = self.model.generate(ids, attention_mask=mask, max_new_tokens=new,
                                          min_new_tokens=new, do_sample=False, pad_token_id=0)
            texts += out[:, width:].tolist()
        return texts


def measure_engine(engine, prompts, args, batch):
    first = timed(lambda: engine.generate(prompts, 1, batch))
    whole = timed(lambda: engine.generate(prompts, args.new, batch))
    return first, whole


def row(engine, prompts, args, batch, runs, texts):
    def median(i, which):
        return statistics.median(r[which][i] for r in runs)

    steps = -(-len(prompts) // batch) * (args.new - 1)
    decode = median(0, 1) - median(0, 0)
    return {**measure.stamp(), "engine": engine.name, "threads": args.threads, "batch": batch,
            "prompts": len(prompts), "prompt_tokens": sum(map(len, prompts)), "new": args.new,
            "prefill_s": f"{median(0, 0):.2f}", "decode_s": f"{decode:.2f}",
            "tokens_s": f"{len(prompts) * (args.new - 1) / decode:.1f}",
            "gb_s": f"{steps * engine.bytes / decode / 1e9:.2f}",
            "cpu_prefill_s": f"{median(1, 0):.2f}",
            "cpu_decode_s": f"{median(1, 1) - median(1, 0):.2f}",
            "same": sum(a == b for a, b in zip(*texts))}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=measure.ROOT / "build/demo/SmolLM2-135M-Instruct")
    parser.add_argument("--prompts", default=measure.ROOT / "examples/prompts.jsonl")
    parser.add_argument("--library", default=measure.ROOT / "build/release/libtare.so")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    engines = [Tare(args), Transformers(args)]
    with open(args.prompts, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f][:args.count]
    with engines[0].library.tokenizer(args.model) as tokenizer:
        prompts = [tokenizer.encode(line.get("inputs_pretokenized") or line["prompt"], True)
                   for line in lines]
    rows = []
    for batch in map(int, args.batch.split(",")):
        runs = {e: [] for e in engines}
        for e in engines:
            e.generate(prompts[:1], 2, 1)  # loads, and warms up
        for _ in range(args.runs):
            for e in engines:
                runs[e].append(measure_engine(e, prompts, args, batch))
        texts = [runs[e][-1][1][2] for e in engines]
        rows += [row(e, prompts, args, batch, runs[e], texts) for e in engines]
    measure.print_csv(rows)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What each setting does to accuracy, judged by a PyTorch model of the engine; prints CSV.

One setting at a time differs from BASE (act_method 3, L5, down_proj float, FA3, m3); two rows have
no more than down_proj to tell them apart. A row is printed as soon as it is known.

    bench/bench_accuracy.py --model build/demo/SmolLM2-135M-Instruct --calib boolq.jsonl \\
        --oracle evaluate.py --text held_out.jsonl [--only 'm?,none'] [--oracle-python PYTHON]

--oracle is a script that takes --base MODEL --quant OUT --text FILE --tokens N --json REPORT and
writes kl (nats a token), top1_agreement, ppl_float and ppl_quant of OUT against MODEL. --only takes
patterns of setting names. Repeat --model for several models, for example one with planted outliers
(examples/smollm2.py --outliers 4).
"""
import argparse
import csv
import fnmatch
import json
import pathlib
import resource
import sys
import tempfile

import measure

BASE = {"--act-method": "3", "--disable-level": "L5", "--disable-names": "*.mlp.down_proj",
        "--anti-method": "m3", "--fa-quant": True}
PLAIN = {"--act-method": "1"}
SETTINGS = {
    "plain": PLAIN,
    "plain + down_proj float": PLAIN | {"--disable-names": "*.mlp.down_proj"},
    **{anti: BASE | {"--anti-method": anti}
       for anti in ("none", "m1", "m2", "m3", "m4", "m5", "m6")},
    "down_proj quantized": BASE | {"--disable-names": None},
    **{level: BASE | {"--disable-level": level} for level in ("L0", "L20")},
    **{f"act_method {method}": BASE | {"--act-method": method} for method in "12"},
    "no fa": BASE | {"--fa-quant": None},
    "fa_amp 5": BASE | {"--fa-amp": "5"},
}


def flags(setting):
    """A dict of flags as arguments; True: a flag without a value, None: not given."""
    for name, value in setting.items():
        if value is not None:
            yield name
            if value is not True:
                yield value


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_setting(args, model, setting, folder):
    out, report = folder / "out", folder / "report.json"
    before = cpu_seconds()
    seconds, peak, text = measure.run(
        [args.tare, "quantize", model, "--out", out, "--calib", args.calib, "--samples",
         args.samples, *flags(setting), "--json", "--quiet"])
    cpu, done = cpu_seconds() - before, json.loads(text)
    measure.run([args.oracle_python, args.oracle, "--base", model, "--quant", out,
                 "--text", args.text, "--tokens", args.tokens, "--json", report])
    judged = json.loads(report.read_text(encoding="utf-8"))
    return {"quantized": f"{done['linears_quantized']}/{done['linears']}",
            "size": f"{done['bytes_out'] / done['bytes_in']:.3f}",
            "wall_s": f"{seconds:.1f}", "cpu_s": f"{cpu:.1f}", "peak_mib": peak >> 20,
            "kl": f"{judged['kl']:.4f}", "top1": f"{judged['top1_agreement']:.3f}",
            "perplexity": f"{judged['ppl_quant']:.2f}",
            "perplexity_float": f"{judged['ppl_float']:.2f}"}


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--model", required=True, action="append", type=pathlib.Path)
    ap.add_argument("--calib", required=True, type=pathlib.Path)
    ap.add_argument("--text", required=True, type=pathlib.Path)
    ap.add_argument("--oracle", required=True, type=pathlib.Path)
    ap.add_argument("--oracle-python", type=pathlib.Path, default=pathlib.Path(sys.executable))
    ap.add_argument("--tare", type=pathlib.Path, default=measure.ROOT / "build/release/tare")
    ap.add_argument("--samples", type=int, default=50)
    ap.add_argument("--tokens", type=int, default=4096)
    ap.add_argument("--only", default="*", help="comma-separated patterns of settings")
    args = ap.parse_args()
    patterns = args.only.split(",")
    names = [n for n in SETTINGS if any(fnmatch.fnmatchcase(n, p) for p in patterns)]

    writer = None
    for model in args.model:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                row = measure.stamp() | {"model": model.name, "setting": name} | measure_setting(
                    args, model, SETTINGS[name], pathlib.Path(folder))
            if not writer:
                writer = csv.DictWriter(sys.stdout, row, lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()

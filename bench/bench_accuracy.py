#!/usr/bin/env python3
"""What each setting does to accuracy, judged by a PyTorch model of the engine; prints CSV.

One setting at a time differs from BASE (act_method 3, L5, down_proj float, FA3, m3); two rows have
no more than down_proj to tell them apart, and those of --set schemes compare the types of linears
and of the key/value cache. --set transformations is what rotation, balance, gptq and ranges give one on
top of the other, for linears that are static (down_proj float), static with a dynamic down_proj, and
dynamic; --set recipes the recipes that ship. A row is printed as soon as it is known.

    bench/bench_accuracy.py --model build/demo/SmolLM2-135M-Instruct --calib boolq.jsonl \\
        --text held_out.jsonl [--set schemes] [--only 'm?,none'] [--oracle-python PYTHON]

The judge is tests/oracle/engine.py, or another script (--oracle) that takes --base MODEL --quant OUT
--text FILE --tokens N --json REPORT and writes kl (nats a token), top1_agreement, ppl_float and
ppl_quant of OUT against MODEL; --oracle-python is one with PyTorch and transformers. --only takes
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
DYNAMIC, M3, C8 = {"--scheme": "w8a8_dynamic"}, {"--anti-method": "m3"}, {"--kv-cache": "c8"}
DOWN_DYNAMIC = {"--mix": "*.down_proj=w8a8_dynamic"}
ALL_FLOAT = {"--disable-names": "*_proj"}
SCHEMES = {
    "w8a8": {}, "w8a8 symmetric": {"--act-sym": True}, "w8a8 m3": M3,
    "w8a8 symmetric m3": M3 | {"--act-sym": True},
    "llama3.1-70b": {"--recipe": "llama3.1-70b"},
    "down_proj dynamic": DOWN_DYNAMIC, "down_proj dynamic m3": DOWN_DYNAMIC | M3,
    "w8a8_dynamic": DYNAMIC, "w8a8_dynamic m3": DYNAMIC | M3,
    "w8a8_mix": {"--scheme": "w8a8_mix"}, "w8a8_mix m3": {"--scheme": "w8a8_mix"} | M3,
    "w8a16": {"--scheme": "w8a16"},
    "c8 alone": ALL_FLOAT | C8, "fa alone": ALL_FLOAT | {"--fa-quant": True},
    "w8a8 m3 c8": M3 | C8, "w8a8 m3 fa": M3 | {"--fa-quant": True},
    "w8a8_dynamic c8": DYNAMIC | C8, "w8a8_dynamic fa": DYNAMIC | {"--fa-quant": True},
}

DOWN_FLOAT = {"--disable-names": "*.mlp.down_proj"}
ROTATED = {"--rotate": True}
BALANCE = {"--anti-method": "balance"}
FORMS = {"static": DOWN_FLOAT, "mixed": DOWN_DYNAMIC, "dynamic": DYNAMIC}
STEPS = {"none": {}, **{m: {"--anti-method": m} for m in ("m1", "m2", "m3", "m4", "m5", "m6")},
         "rotation": ROTATED, "+ balance": ROTATED | BALANCE,
         "+ gptq": ROTATED | BALANCE | {"--weight-method": "gptq"},
         "+ mse": ROTATED | BALANCE | {"--weight-method": "gptq", "--act-method": "4"}}
CACHES = {"": {}, "fa3": {"--fa-quant": True}, "c8": C8}


def transformed(form, step, cache):
    """Balance is of up and down where down_proj is dynamic, and of queries and keys where FA3 takes them."""
    setting = FORMS[form] | STEPS[step] | CACHES[cache]
    if setting.get("--anti-method") == "balance":
        setting["--fa-balance"] = True if cache == "fa3" else None
        if form == "static":
            del setting["--anti-method"]
    return setting


TRANSFORMATIONS = {f"{form} {cache} {step}".replace("  ", " "): transformed(form, step, cache)
                   for form in FORMS for cache in CACHES for step in STEPS}
RECIPES = {name: {"--recipe": name} for name in ("llama3.1-70b", "best-static", "all-int8", "best-c8")}
RECIPES |= {f"{name}, seed 1": {"--recipe": name, "--rotate": "1"} for name in ("best-static", "all-int8")}
SETS = {"settings": SETTINGS, "schemes": SCHEMES, "transformations": TRANSFORMATIONS,
        "recipes": RECIPES}


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


def judge(args, model, out, text, report):
    measure.run([args.oracle_python, args.oracle, "--base", model, "--quant", out, "--text", text,
                 "--tokens", args.tokens, *(["--max-length", args.max_length] if args.max_length else []),
                 "--json", report])
    return json.loads(report.read_text(encoding="utf-8"))


def columns(args, text, judged):
    """Of several texts with the name of their file."""
    end = f" {text.stem}" if len(args.text) > 1 else ""
    yield f"kl{end}", f"{judged['kl']:.4f}"
    yield f"top1{end}", f"{judged['top1_agreement']:.3f}"
    yield f"perplexity{end}", f"{judged['ppl_quant']:.2f}"
    yield f"perplexity_float{end}", f"{judged['ppl_float']:.2f}"


def measure_setting(args, model, setting, folder):
    out, report = folder / "out", folder / "report.json"
    before = cpu_seconds()
    seconds, peak, text = measure.run(
        [args.tare, "quantize", model, "--out", out, "--calib", args.calib, "--samples",
         args.samples, *flags(setting), "--json", "--quiet"])
    cpu, done = cpu_seconds() - before, json.loads(text)
    judged = {text.stem: judge(args, model, out, text, report) for text in args.text}
    return {"quantized": f"{done['linears_quantized']}/{done['linears']}",
            "size": f"{done['bytes_out'] / done['bytes_in']:.3f}",
            "mb": f"{done['bytes_out'] / 1e6:.0f}", "mb_float": f"{done['bytes_in'] / 1e6:.0f}",
            "wall_s": f"{seconds:.1f}", "cpu_s": f"{cpu:.1f}", "peak_mib": peak >> 20} | {
                key: value for text in args.text for key, value in columns(args, text, judged[text.stem])}


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--model", required=True, action="append", type=pathlib.Path)
    ap.add_argument("--calib", required=True, type=pathlib.Path)
    ap.add_argument("--text", required=True, action="append", type=pathlib.Path, help="repeat for more")
    ap.add_argument("--max-length", type=int, help="tokens of a text, at most (the judge's default)")
    ap.add_argument("--oracle", default=measure.ROOT / "tests/oracle/engine.py", type=pathlib.Path)
    ap.add_argument("--oracle-python", type=pathlib.Path, default=pathlib.Path(sys.executable))
    ap.add_argument("--tare", type=pathlib.Path, default=measure.ROOT / "build/release/tare")
    ap.add_argument("--samples", type=int, default=50)
    ap.add_argument("--tokens", type=int, default=4096)
    ap.add_argument("--set", default="settings", choices=SETS, help="which settings")
    ap.add_argument("--only", default="*", help="comma-separated patterns of settings")
    args = ap.parse_args()
    patterns = args.only.split(",")
    settings = SETS[args.set]
    names = [n for n in settings if any(fnmatch.fnmatchcase(n, p) for p in patterns)]

    writer = None
    for model in args.model:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                row = measure.stamp() | {"model": model.name, "setting": name} | measure_setting(
                    args, model, settings[name], pathlib.Path(folder))
            if not writer:
                writer = csv.DictWriter(sys.stdout, row, lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Are the outputs of two revisions the same, byte for byte? For refactorings.

    tests/compare_revisions.py OLD [NEW] [--smollm2 DIR] [--only TEXT]

Builds the git revisions OLD and NEW (default: the working tree) below build/compare, runs the same
commands with both, and compares every file of every output. A command that one of the two does
not know is a difference too. The matrix: every tiny model of the golden cases, with each method of
smoothing, range, scheme, save type, with and without compat; ways to lay a run out in memory, from
whole layers to single units; threads 1 and 2; a run that is stopped and resumed; and, with a real
model, the shipped recipes. tare_run.json is compared without the version, the fingerprint, and
settings that are at nothing. Exit status 1 if anything differs.
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "compare"
ALL_TYPES = "ascendv1,safe_tensor,numpy,compressed-tensors"
SKIPPED = (1, 2, 3, 4, 6, 9, 12, 16)  # ways to lay a run out in memory, from the fastest on


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, **options)


def build(revision):
    """The command built from a revision; None: the working tree."""
    if revision is None:
        source, folder = ROOT, WORK / "tree"
    else:
        name = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "--short", revision],
                                       text=True).strip()
        source, folder = WORK / name / "source", WORK / name / "build"
        if not source.exists():
            source.mkdir(parents=True)
            archive = subprocess.run(["git", "-C", ROOT, "archive", revision], check=True,
                                     stdout=subprocess.PIPE)
            run("tar", "x", "-C", source, input=archive.stdout)
    run("cmake", "-S", source, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DTARE_TESTS=OFF",
        "-DTARE_BENCH=OFF", stdout=subprocess.DEVNULL)
    run("cmake", "--build", folder, f"-j{os.cpu_count()}", "--target", "tare_command",
        stdout=subprocess.DEVNULL)
    return folder / "tare"


# ---- what is run: name, model, arguments

def golden_roots():
    return [p for p in (ROOT / "tests/data/golden", ROOT.parent / "shared/golden") if p.is_dir()]


def dense_models():
    """{name: (model folder, calibration ids)} of the tiny models that every revision knows."""
    found = {}
    for root in golden_roots():
        for config in sorted(root.glob("*/model/config.json")):
            kind = json.loads(config.read_text()).get("model_type")
            if kind in ("llama", "mistral", "qwen2", "qwen3"):
                found[config.parent.parent.name] = (config.parent, root / "calib_ids.json")
    return found


def tiny_runs():
    every = ["--save", ALL_TYPES]
    ascend = ["--save", "ascendv1,safe_tensor,numpy"]  # FA and shifts: not in compressed-tensors
    for name, (model, calib) in dense_models().items():
        def case(label, *flags, model=model, calib=calib, name=name):
            return f"{name}: {label}", model, ["--calib", calib, *flags]
        for act in (1, 2, 3):
            yield case(f"act {act}", "--act-method", act, *every)
            yield case(f"act {act} compat", "--act-method", act, "--compat", "msmodelslim", *ascend)
        for method in ("m1", "m2", "m3", "m4", "m5", "m6"):
            save = ["--save", "safe_tensor,numpy"] if method == "m4" else ascend
            for extra in ([], ["--compat", "msmodelslim"], ["--disable-level", "L2"]):
                yield case(f"{method} {' '.join(extra)}", "--anti-method", method, "--act-method",
                           3, *extra, *save)
        for dtype in ("float16", "bfloat16"):
            yield case(dtype, "--dtype", dtype, *every)
            yield case(f"{dtype} compat", "--dtype", dtype, "--compat", "msmodelslim", "--act-method",
                       3, "--anti-method", "m3", "--fa-quant", *ascend)
        yield case("fa", "--fa-quant", "--anti-method", "m6", *ascend)
        yield case("fa amp", "--fa-quant", "--fa-amp", 1, "--disable-names",
                   "model.layers.0.self_attn", *ascend)
        yield case("act 4", "--act-method", 4, *every)
        yield case("final scales", "--final-scales", "--anti-method", "m3", *every)
        yield case("balance", "--fa-quant", "--fa-balance", "--anti-method", "balance", *ascend)
        yield case("fa mse", "--fa-quant", "--fa-v-method", "mse", *ascend)
        yield case("head", "--no-disable-last-linear", "--mm-tensor", "--act-method", 3, *every)
        yield case("level", "--disable-level", "L3", *every)
        yield case("names", "--disable-names", "*.down_proj,*.q_proj", *every)
        yield case("pr", "--pr", 0.5, "--seed", 7, *every)
        yield case("shards", "--part-file-size", 1, *every)
        for flags in ([], ["--no-w-sym"], ["--mm-tensor"], ["--no-disable-last-linear"],
                      ["--disable-level", "L2"], ["--disable-names", "*.o_proj"]):
            yield case(f"w8a16 {' '.join(flags)}", "--a-bit", 16, *flags, *every)
        for threads in (1, 2):
            yield case(f"threads {threads}", "--threads", threads, "--act-method", 3,
                       "--anti-method", "m3", "--save", "ascendv1,safe_tensor")


def real_runs(model, calib):
    for recipe in ("llama3.1-70b", "qwen2.5-72b"):
        for threads in (1, 2):
            yield (f"real: {recipe}, threads {threads}", model,
                   ["--calib", calib, "--recipe", recipe, "--samples", 8, "--threads", threads,
                    "--save", "ascendv1,safe_tensor,numpy"])
        yield (f"real: {recipe}", model, ["--calib", calib, "--recipe", recipe, "--samples", 8])
    yield "real: w8a16", model, ["--a-bit", 16, "--save", ALL_TYPES]
    for method in ("m1", "m2", "m4", "m5", "m6"):
        yield (f"real: {method}", model, ["--calib", calib, "--samples", 4, "--anti-method", method,
                                          "--no-disable-last-linear"])


# ---- running and comparing

def without_empty(value):
    """A JSON value without what is null, empty or false: settings that one revision lacks."""
    if isinstance(value, dict):
        value = {k: without_empty(v) for k, v in value.items()}
        return {k: v for k, v in value.items() if v not in (None, False, [], {})}
    return value


def digest(path):
    data = path.read_bytes()
    if path.name == "tare_run.json":
        record = without_empty(json.loads(data))
        record.pop("tare_version", None)
        record.pop("fingerprint", None)  # of the recipe's text, and of this program
        data = json.dumps(record).encode()
    return hashlib.sha256(data).hexdigest()


def files(folder):
    return {str(p.relative_to(folder)): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def output(tare, model, arguments, folder):
    """{file: digest} of an output, or the message of a refusal."""
    out = folder / "out"
    done = subprocess.run([tare, "quantize", str(model), "--out", str(out), "--quiet",
                           *map(str, arguments)], capture_output=True, text=True)
    result = files(out) if done.returncode == 0 else {"refused": done.stderr.strip()}
    shutil.rmtree(out, ignore_errors=True)
    return result


def resumed(tare, model, arguments, folder):
    """The same of a run that is stopped (SIGINT) after its first checkpoint and goes on."""
    out = folder / "out"
    command = [tare, "quantize", str(model), "--out", str(out), "--checkpoint-every", "1",
               *map(str, arguments)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and not any(out.glob(".tare/state*")):
        pass
    first.send_signal(signal.SIGINT)
    first.wait()
    return output(tare, model, [*arguments, "--resume"], folder)


def compare(old, new, case):
    label, model, arguments = case
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        folder = pathlib.Path(folder)
        expected = output(old, model, arguments, folder)
        results = [(label, output(new, model, arguments, folder))]
        if "refused" not in expected and ("threads 2" in label or "real" in label):
            for skip in SKIPPED:
                results.append((f"{label}, layout {skip}",
                                output(new, model, [*arguments, "--skip-layouts", skip], folder)))
            results.append((f"{label}, resumed", resumed(new, model, arguments, folder)))
    return [(name, different(expected, result), "refused" in result) for name, result in results]


def different(expected, found):
    names = sorted(set(expected) | set(found))
    return [f"{n}: {expected.get(n, 'absent')[:200]} / {found.get(n, 'absent')[:200]}" for n in names
            if expected.get(n) != found.get(n)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", help="default: the working tree")
    parser.add_argument("--smollm2", type=pathlib.Path, help="folder of a real model")
    parser.add_argument("--calib", default="builtin", help="its prompts")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    old, new = build(args.old), build(args.new)
    cases = list(tiny_runs())
    if args.smollm2:
        cases += real_runs(args.smollm2.resolve(), args.calib)
    cases = [c for c in cases if args.only in c[0]]
    failed = total = refused = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for results in pool.map(lambda c: compare(old, new, c), cases):
            for name, differences, is_refused in results:
                total += 1
                failed += bool(differences)
                refused += is_refused
                if is_refused and not differences:
                    print(f"{name}: both refuse")
                for line in differences:
                    print(f"{name}: {line}")
    print(f"{total - failed} passed, {failed} failed")
    return 1 if failed or refused == total else 0


if __name__ == "__main__":
    sys.exit(main())

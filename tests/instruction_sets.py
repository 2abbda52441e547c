"""Runs the tests with the kernels of every instruction set, and says which were exercised.

    instruction_sets.py forced BUILD     unit and golden tests with each set that this CPU has
                                         below its best, with which the other tests run
    instruction_sets.py emulated BUILD   the same under qemu-user on models of CPUs: one with AVX2
                                         alone, one without AVX; and one whole `tare quantize`
    instruction_sets.py skipped BUILD    names what ctest's last run skipped
    instruction_sets.py report BUILD     one line: what the runs above exercised

The library never looks at the environment: TARE_TEST_CPU is read by the tests' fixtures, and the
command gets --cpu from a small script in its place.
"""
import concurrent.futures
import ctypes
import filecmp
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time

from libtare import ContextOptions

TESTS = pathlib.Path(__file__).resolve().parent
NAMES = ("scalar", "avx2", "avx512", "amx")
QEMU = "qemu-x86_64"
MODELS = {"Haswell": "avx2", "Nehalem": "scalar"}  # of qemu: which set is the best there
WITHOUT = {"Haswell": ",-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm"}  # qemu warns of these
# Left out under qemu, which makes minutes of them: whole runs by the dozen. And one whose forked child
# makes threads, at which qemu-user 7.2 breaks down. They run natively with every set of the CPU.
LEFT_OUT = ("test_faults", "test_calib_faults", "test_smoothing_step", "test_recording",
            "test_layer_selector", "test_layouts", "test_lifetime")
# Faults of files and memory, and decimal commas, are the same with every set.
FORCED_LEFT_OUT = "^test_(faults|calib_faults|locale)$"
GOLDEN = TESTS / "data" / "golden"


def available(build):
    """The sets of this CPU, by the library itself."""
    lib = ctypes.CDLL(str(build / "libtare.so"))
    lib.tare_context_free.argtypes = [ctypes.c_void_p]
    lib.tare_context_options_init_sized.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    found = []
    for value, name in enumerate(NAMES, 1):
        options, context = ContextOptions(), ctypes.c_void_p()
        lib.tare_context_options_init_sized(ctypes.byref(options),
                                            ctypes.c_size_t(ctypes.sizeof(options)))
        options.cpu = value
        if lib.tare_context_create(ctypes.byref(context), ctypes.byref(options)) == 0:
            found.append(name)
            lib.tare_context_free(context)
    return found


def call(*command, **environment):
    """Runs a command to its success; its output goes where ours goes."""
    print("+", *(f"{k}={v}" for k, v in environment.items()), shlex.join(map(str, command)),
          flush=True)
    subprocess.run([str(c) for c in command], check=True, env={**os.environ, **environment})


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def golden_tests(build, command, *files, **environment):
    call(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, TARE_BIN=command,
         TARE_LIBRARY=build / "libtare.so", **environment)


def exercised(build):
    return build / "instruction_sets.txt"


def add(build, how, name):
    with open(exercised(build), "a") as f:
        f.write(f"{how} {name}\n")


# ---- forced

def forced(build):
    """Unit and golden tests once a set; the best one is that of all other tests."""
    exercised(build).unlink(missing_ok=True)
    *lower, best = available(build)
    for name in lower:
        call("ctest", "--test-dir", build, "--no-tests=error", "--output-on-failure",
             f"-j{os.cpu_count()}", "-E", FORCED_LEFT_OUT, TARE_TEST_CPU=name)
        tare = write_script(build / "forced" / name, f"""# tare with the kernels of {name}
case "$1 $*" in ' '|-*|help*|*' --cpu '*) exec {shlex.quote(str(build))}/tare "$@" ;; esac
command=$1
shift
exec {shlex.quote(str(build))}/tare "$command" --cpu {name} "$@"
""")
        golden_tests(build, tare, TESTS / "golden", TARE_TEST_CPU=name)
        add(build, "native", name)
    add(build, "native", best)


# ---- emulated

def emulator(model):
    return [QEMU, "-cpu", model + WITHOUT.get(model, "")]


def run_unit_test(model, program):
    start = time.monotonic()
    done = subprocess.run([*emulator(model), program], capture_output=True, text=True,
                          errors="replace", timeout=600)
    return program.name, done, time.monotonic() - start


def emulated_unit_tests(build, model):
    programs = [p for p in sorted((build / "tests").glob("test_*"))
                if p.name not in LEFT_OUT and os.access(p, os.X_OK)]
    print(f"unit tests on an emulated {model}, without {', '.join(LEFT_OUT)}", flush=True)
    failures = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, done, seconds in pool.map(lambda p: run_unit_test(model, p), programs):
            if seconds > 20:
                print(f"  {name}: {seconds:.0f} s", flush=True)
            if done.returncode:
                failures.append(name)
                print(f"{name} failed ({done.returncode}):\n{done.stdout}{done.stderr}", flush=True)
    if failures or not programs:
        sys.exit(f"unit tests on an emulated {model}: {', '.join(failures) or 'none found'}")


def quantize(tare, out, *flags):
    shutil.rmtree(out, ignore_errors=True)
    call(tare, "quantize", GOLDEN / "llama" / "model", "--out", out, "--calib",
         GOLDEN / "calib_ids.json", "--anti-method", "m2", "--quiet", *flags)


def emulated_run(build, model, tare, sets):
    """Verified, and the bytes of the same kernels on this CPU where it has them."""
    out, native = build / "emulated" / f"{model}-out", build / "emulated" / f"{model}-native"
    quantize(tare, out)
    call(tare, "verify", out, "--base", GOLDEN / "llama" / "model", "--quiet")
    if MODELS[model] not in sets:
        return
    quantize(build / "tare", native, "--cpu", MODELS[model])
    names = [str(p.relative_to(native)) for p in native.rglob("*") if p.is_file()]
    same, differing, missing = filecmp.cmpfiles(native, out, names, shallow=False)
    if set(differing + missing) - {"tare_run.json"}:  # times
        sys.exit(f"{model}: other bytes than natively: {differing + missing}")


def emulated(build):
    if platform.machine() != "x86_64":
        print(f"skipped: models of x86-64 CPUs are not emulated on {platform.machine()}")
        return
    sets = available(build)
    for model, name in MODELS.items():
        tare = write_script(build / "emulated" / model,
                            f"exec {shlex.join(emulator(model))} "
                            f"{shlex.quote(str(build))}/tare \"$@\"\n")
        emulated_unit_tests(build, model)
        golden_tests(build, tare, TESTS / "golden" / "test_golden.py", TARE_GOLDEN="carried")
        emulated_run(build, model, tare, sets)
        add(build, "emulated", name)


# ---- saying so

def skipped(build):
    """Tests that the last ctest skipped, and cases that it left out, in its log's own words."""
    log = (build / "Testing" / "Temporary" / "LastTest.log").read_text(errors="replace")
    reasons = {}
    pattern = r"skipped: (.+)\n(?:.*\n)?\[  SKIPPED \] (\w.*)"
    for reason, test in re.findall(pattern, log):
        reasons.setdefault(reason, []).append(test)
    for reason, tests in reasons.items():
        print(f"skipped, {reason}: {', '.join(tests)}")
    for line in dict.fromkeys(re.findall(r"not covered: (?:.*/golden/)?(.*)", log)):
        print(f"no golden case of these unit tests: {line}")


def report(build):
    runs = [line.split() for line in exercised(build).read_text().splitlines()]
    native = [name for name in NAMES if ["native", name] in runs]
    parts = [f"instruction sets exercised: {', '.join(native)}"]
    missing = [name for name in NAMES if name not in native]
    if missing:
        parts.append(f"not on this CPU: {', '.join(missing)}")
    emulations = [name for name in NAMES if ["emulated", name] in runs]
    if emulations:
        parts.append(f"also emulated: {', '.join(emulations)}")
    print("; ".join(parts))


if __name__ == "__main__":
    actions = {f.__name__: f for f in (forced, emulated, skipped, report)}
    if len(sys.argv) != 3 or sys.argv[1] not in actions:
        sys.exit(__doc__)
    try:
        actions[sys.argv[1]](pathlib.Path(sys.argv[2]).resolve())
    except subprocess.CalledProcessError as error:
        sys.exit(f"exit status {error.returncode}: {shlex.join(map(str, error.cmd))}")

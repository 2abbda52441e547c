"""What every test shares: where the command, the library and the data are.

TARE_BIN and TARE_LIBRARY name the build under test (the Makefile sets them; the default is the
release build). TARE_SMOLLM2 names the SmolLM2 folder that `make test-all` makes. Larger reference
data may lie in `shared/` beside the checkout; tests that need it are skipped by name without it.
"""
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
DATA = TESTS / "data"
GOLDEN = DATA / "golden"
SHARED = ROOT.parent / "shared"
EXAMPLES = ROOT / "examples"

# PyTorch's threads spin while they wait for each other: beside another worker of pytest-xdist they
# took four times the CPU time of one thread. (tare has threads of its own, which this is not for.)
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path[:0] = [str(TESTS), str(ROOT / "python")]

import instruction_sets  # noqa: E402


def from_environment(name, default):
    return pathlib.Path(os.environ.get(name, ROOT / default)).resolve()


TARE_BIN = from_environment("TARE_BIN", "build/release/tare")
TARE_LIBRARY = from_environment("TARE_LIBRARY", "build/release/libtare.so")
SMOLLM2 = from_environment("TARE_SMOLLM2", "build/demo/SmolLM2-135M-Instruct")
os.environ["TARE_LIBRARY"] = str(TARE_LIBRARY)  # for the package `tare`, here and in child processes


def output_files(folder, record=True):
    """{name below it: bytes} of every file of an output but its statistics, which name their run, and
    without its `record`, which tells where the data came from."""
    left_out = {"tare_stats.safetensors"} | (set() if record else {"tare_run.json"})
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name not in left_out}


def run_tare(*args, timeout=600, **kwargs):
    """Runs the command; returns the finished process with text in .stdout and .stderr."""
    return subprocess.run([str(TARE_BIN), *map(str, args)], capture_output=True, text=True,
                          errors="replace", timeout=timeout, **kwargs)


def need_cpu(name):
    """Skips the test where this CPU lacks an instruction set."""
    if name not in instruction_sets.available(TARE_LIBRARY.parent):
        pytest.skip(f"this CPU has no {name}")


@pytest.fixture(scope="session")
def tare():
    return run_tare


@pytest.fixture(scope="session")
def library():
    from libtare import Library
    return Library(TARE_LIBRARY)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny checkpoint, for tests that leave it as it is."""
    import tiny
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    """A few prompts for it."""
    import tiny
    return tiny.write_prompts(tmp_path_factory.mktemp("calibration") / "prompts.jsonl")


def pytest_configure(config):
    config.addinivalue_line("markers", "budget: holds the process to a limit of memory")

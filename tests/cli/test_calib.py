"""tare calib: mixed calibration sets, against what the reference wrote for the same inputs
(tests/data/calibration; expected_N.settings.json says with which settings)."""
import json
import os
import pathlib
import shutil
import stat
import subprocess

import pytest
from conftest import DATA, TARE_BIN, run_tare

FIXTURES = DATA / "calibration"
NUMBERED = sorted(FIXTURES.glob("expected_[0-9]*.settings.json"))
OPTIONAL = sorted(FIXTURES.glob("expected_opt_*.settings.json"))


def settings_of(path):
    return json.loads(path.read_text())


def calib(config, sizes, out, *flags, cwd=None, **kwargs):
    """Runs the command; `sizes` is a dict or the text of --size."""
    if isinstance(sizes, dict):
        sizes = ",".join(f"{name}={n}" for name, n in sizes.items())
    return run_tare("calib", "--config", config, "--size", sizes, "--out", out, *flags,
                    cwd=cwd, **kwargs)


def calib_settings(s, out, *flags):
    return calib(s["config"], s["sample_size"], out, "--seed", s["shuffle_seed"], *flags,
                 cwd=FIXTURES)


def assert_done(done):
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def delivered(done):
    """{name: count} of the closing lines."""
    counts = {}
    for line in done.stderr.splitlines():
        if ": requested " in line:
            name, rest = line.split(": ", 1)
            counts[name] = int(rest.split("delivered ")[1].split(",")[0])
    return counts


# ---- what the reference wrote

@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.name.split(".")[0])
def test_compat_bytes(path, tmp_path):
    s = settings_of(path)
    done = calib_settings(s, tmp_path / "mix.json", "--compat", "msmodelslim")
    assert_done(done)
    expected = path.name.replace(".settings", "")
    assert (tmp_path / "mix.json").read_bytes() == (FIXTURES / expected).read_bytes()
    assert delivered(done) == s["delivered"]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.name.split(".")[0])
def test_default_bytes(path, tmp_path):
    s = settings_of(path)
    done = calib_settings(s, tmp_path / "mix.json")
    assert_done(done)
    ending = ".json" if s["default_equal"] else ".default.json"
    expected = path.name.replace(".settings.json", ending)
    assert (tmp_path / "mix.json").read_bytes() == (FIXTURES / expected).read_bytes()
    assert delivered(done) == s.get("delivered_default", s["delivered"])


@pytest.mark.parametrize("path", OPTIONAL, ids=lambda p: p.name.split(".")[0])
def test_option_bytes(path, tmp_path):
    s = settings_of(path)
    flags = []
    if "mmlu_shots" in s:
        flags += ["--mmlu-shots", s["mmlu_shots"]]
    if "sample_seed" in s:
        flags += ["--sample-seed", s["sample_seed"]]
    assert flags
    assert_done(calib_settings(s, tmp_path / "mix.json", *flags))
    expected = path.name.replace(".settings", "")
    assert (tmp_path / "mix.json").read_bytes() == (FIXTURES / expected).read_bytes()

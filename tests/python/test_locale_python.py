"""The package in a process that has set a locale with decimal commas or Turkish letters."""
import os
import shutil
import subprocess
import sys

import pytest
import tiny
from conftest import ROOT

SCRIPT = """
import locale, sys
import numpy as np
import tare
print(locale.setlocale(locale.LC_ALL, sys.argv[1]))
model = tare.load(sys.argv[2], max_memory={"cpu": "1.5GIB"})
config = tare.QuantConfig(act_method=3, pr=0.5, dev_type="cpu", disable_last_linear=False)
calibrator = tare.Calibrator(model, config, calib_data=[[np.array([1, 2, 3, 258])]],
                             disable_level="L1")
calibrator.run()
calibrator.save(sys.argv[3], save_type=["ascendv1"])
try:
    tare.load(sys.argv[2], max_memory={"cpu": "1,5GiB"})
except Exception as error:
    print(error)
"""


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locales")
    localedef = shutil.which("localedef")
    for name in ("de_DE", "tr_TR"):
        if not localedef or subprocess.run([localedef, "-i", name, "-f", "UTF-8",
                                            folder / f"{name}.UTF-8"],
                                           capture_output=True).returncode:
            pytest.skip("localedef or its locales are missing (Debian: libc-bin, locales)")
    return folder


def run(name, model, out, locales):
    """What it printed, and the bytes of every file of its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "LOCPATH": str(locales)}
    ran = subprocess.run([sys.executable, "-c", SCRIPT, name, model, out], env=environment,
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    name, message = ran.stdout.splitlines()
    return name, message, {p.name: p.read_bytes() for p in out.iterdir()}


def test_same_bytes_and_messages(tmp_path, locales):
    model = tiny.write_checkpoint(tmp_path / "model")
    _, message, files = run("C", model, tmp_path / "c", locales)
    assert "'1,5GiB' is not a size" in message and len(files) > 4
    for name in ("de_DE.UTF-8", "tr_TR.UTF-8"):
        assert run(name, model, tmp_path / name, locales) == (name, message, files)

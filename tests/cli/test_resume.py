"""Runs that are killed and go on: `tare quantize --resume` gives the bytes of an uninterrupted run.

TARE_KILLS says how many random kills are tried (`make test-long`: 50). Kills at every single call to
the operating system are in tests/unit/test_faults.c.
"""
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import tiny
from conftest import TARE_BIN, run_tare

KILLS = int(os.environ.get("TARE_KILLS", "5"))
FLAGS = ["--act-method", 3, "--anti-method", "m4", "--fa-quant", "--fa-amp", 1, "--disable-level",
         "L2", "--save", "safe_tensor,numpy", "--checkpoint-every", 1]
CONFIG = {"num_hidden_layers": 12, "hidden_size": 64, "intermediate_size": 160, "head_dim": 16}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A model of twelve layers, prompts, and the output of an uninterrupted run with the number of
    lines that it reports."""
    folder = tmp_path_factory.mktemp("resume")
    config = {**tiny.CONFIG, **CONFIG}
    model = tiny.write_checkpoint(folder / "model", tiny.make_tensors(config), **CONFIG)
    ids = np.random.default_rng(3).integers(0, 256, (8, 100)).tolist()
    (folder / "ids.json").write_text(json.dumps(ids))
    done = quantize(model, folder / "ids.json", folder / "whole", "--verbose")
    assert done.returncode == 0, done.stderr
    return model, folder / "ids.json", folder / "whole", len(done.stderr.splitlines())


def command(model, ids, out, *flags):
    return [str(a) for a in (TARE_BIN, "quantize", model, "--out", out, "--calib", ids, *FLAGS, *flags)]


def quantize(model, ids, out, *flags):
    return run_tare(*command(model, ids, out, *flags)[1:])


def start_and_stop(setting, out, number, here, *flags):
    """Starts a run and sends it a signal at the line of its report where here(lines so far) is true;
    returns its exit status."""
    model, ids = setting[:2]
    process = subprocess.Popen(command(model, ids, out, "--verbose", *flags),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if here(len(lines)):
            process.send_signal(number)
            break
    rest = process.communicate(timeout=60)[1]
    return process.returncode, "".join(lines) + rest


def assert_same(left, right):
    names, others = (sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
                     for folder in (left, right))
    assert names == others
    assert filecmp.cmpfiles(left, right, names, shallow=False)[0] == names


def test_random_kills(setting, tmp_path):
    model, ids, whole, lines = setting
    rng = random.Random(11)
    for i in range(KILLS):
        out = tmp_path / f"out{i}"
        for _ in range(rng.randint(1, 3)):
            last = rng.randint(1, lines)
            start_and_stop(setting, out, signal.SIGKILL, lambda n: n == last, "--resume")
        done = quantize(model, ids, out, "--resume", "--threads", rng.randint(1, 3))
        assert done.returncode == 0, done.stderr
        assert_same(whole, out)


def test_kills_of_gptq(setting, tmp_path):
    """What rounds the weights of a layer is made anew behind the checkpoint."""
    model, ids, whole, lines = setting
    gptq = ["--weight-method", "gptq"]
    done = quantize(model, ids, tmp_path / "whole", *gptq)
    assert done.returncode == 0, done.stderr
    for last in (lines // 3, 2 * lines // 3):
        start_and_stop(setting, tmp_path / "out", signal.SIGKILL, lambda n: n == last, "--resume", *gptq)
    done = quantize(model, ids, tmp_path / "out", "--resume", "--threads", 3, *gptq)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "whole", tmp_path / "out")
    assert not filecmp.cmp(*(folder / "tare_run.json" for folder in (whole, tmp_path / "out")))


def test_a_kill_behind_the_journal_s_end_leaves_nothing(setting, tmp_path):
    model, ids, whole, _ = setting
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / ".tare").mkdir()
    (out / ".tare" / "lock").touch()
    done = quantize(model, ids, out, "--resume")
    assert done.returncode == 0, done.stderr
    assert "finished already" in done.stderr
    assert_same(whole, out)


def stop_in_the_middle(setting, out, number):
    """A run that was stopped behind its first checkpoint and before its end: each layer is one, so
    that twenty follow, but a machine that is busy elsewhere may still let the run end first."""
    journal = out / ".tare" / "journal"

    def records():
        return len(journal.read_bytes().splitlines()) if journal.exists() else 0

    for _ in range(10):
        shutil.rmtree(out, ignore_errors=True)
        code, stderr = start_and_stop(setting, out, number, lambda _: records() > 1)
        if records() > 1:
            return code, stderr
    raise AssertionError("never stopped in the middle")


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_leaves_what_resume_needs(setting, tmp_path, number, code):
    model, ids, whole, _ = setting
    out = tmp_path / "out"
    got, stderr = stop_in_the_middle(setting, out, number)
    assert got == code
    assert "--resume goes on" in stderr
    assert [p.name for p in out.iterdir()] == [".tare"]
    done = quantize(model, ids, out)
    assert done.returncode == 2 and "--resume" in done.stderr and "--overwrite" in done.stderr
    done = quantize(model, ids, out, "--resume", "--max-memory", "cpu=200MiB")
    assert done.returncode == 0, done.stderr
    assert "going on" in done.stderr
    assert_same(whole, out)


@pytest.mark.parametrize("what", ["recipe", "prompts", "weights", "config.json"])
def test_changed_inputs_are_refused_by_name(setting, tmp_path, what):
    model, ids, _, _ = setting
    out, flags = tmp_path / "out", []
    stop_in_the_middle(setting, out, signal.SIGKILL)
    before = {p: p.read_bytes() for p in (model / "model.safetensors", model / "config.json")}
    times = {p: p.stat().st_mtime_ns for p in before}
    try:
        named = what
        if what == "recipe":
            flags = ["--act-method", 1]
        elif what == "prompts":
            ids, named = tmp_path / "ids.json", "calibration"
            ids.write_text("[[1, 2, 3]]")
        elif what == "weights":
            named = "model.safetensors"
            data = bytearray(before[model / named])
            data[-1] ^= 1
            (model / named).write_bytes(data)
        else:
            tiny.write_config(model, **CONFIG, rope_theta=5000.0)
        done = quantize(model, ids, out, "--resume", *flags)
    finally:
        for path, data in before.items():
            path.write_bytes(data)
            os.utime(path, ns=(times[path], times[path]))
    assert done.returncode == 2, done.stderr
    assert f"changed: {named}" in done.stderr
    assert (out / ".tare" / "journal").exists()  # nothing is lost by asking


def damage(path):
    data = bytearray(path.read_bytes() or b"x")  # empty: the kill came as it was made
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["last line", "a line", "states", "newest state", "stage"])
def test_damage_is_noticed(setting, tmp_path, part):
    """Whatever a crash or a bad disk did to the folder: the run steps back, never to other bytes."""
    model, ids, whole, _ = setting
    out = tmp_path / "out"
    stop_in_the_middle(setting, out, signal.SIGKILL)
    work = out / ".tare"
    lines = (work / "journal").read_bytes().splitlines(keepends=True)
    if part == "last line":
        (work / "journal").write_bytes(b"".join(lines)[:-7])
    elif part == "a line":
        damage(work / "journal")
    elif part == "states":
        for path in work.glob("state-*"):
            damage(path)
    elif part == "newest state":
        damage(work / f"state-{json.loads(lines[-1][:-18])['state']}")
    else:
        for path in work.glob("stage/*.safetensors"):
            damage(path)
    done = quantize(model, ids, out, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same(whole, out)


def test_a_finished_output_is_left_alone(setting, tmp_path):
    model, ids, whole, _ = setting
    times = {p.name: p.stat().st_mtime_ns for p in whole.iterdir()}
    done = quantize(model, ids, whole, "--resume")
    assert done.returncode == 0 and "finished already" in done.stderr
    assert times == {p.name: p.stat().st_mtime_ns for p in whole.iterdir()}
    done = quantize(model, ids, whole, "--resume", "--act-method", 1)
    assert done.returncode == 2 and "changed: recipe" in done.stderr


def test_two_runs_on_one_folder(setting, tmp_path):
    model, ids, _, _ = setting
    out = tmp_path / "out"
    process = subprocess.Popen(command(model, ids, out), stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)
    try:
        while not (out / ".tare" / "journal").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        done = quantize(model, ids, out, "--resume")
        assert done.returncode == 2 and "another run" in done.stderr
    finally:
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0


def test_a_checkpoint_that_changes_while_it_is_read(setting, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model", tiny.make_tensors({**tiny.CONFIG, **CONFIG}),
                                  **CONFIG)
    out = tmp_path / "out"
    process = subprocess.Popen(command(model, setting[1], out), stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True)
    while not (out / ".tare" / "journal").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    os.utime(model / "model.safetensors")
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was changed while it was read" in stderr
    assert not out.exists() or [p.name for p in out.iterdir()] in ([], [".tare"])

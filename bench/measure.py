"""Runs a command and says what it cost; what the bench programs share."""
import csv
import datetime
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(command, **kwargs):
    """Runs `command` to its end; returns (seconds, peak resident bytes, stdout). Ends the program
    with the command's own words when it fails."""
    command = [str(c) for c in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=err, **kwargs)
        _, status, usage = os.wait4(process.pid, 0)  # the peak of this child alone
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            sys.exit(f"{' '.join(command)}\nended with {process.returncode}\n"
                     f"{err.read().decode(errors='replace')[-4000:]}")
        return seconds, usage.ru_maxrss * 1024, out.read().decode()


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def has_amx():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        return "amx_int8" in f.read()


def commit():
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


def stamp():
    """The columns that every row begins with."""
    return {"date": datetime.date.today().isoformat(), "commit": commit(),
            "machine": f"{cpu_model()} x{os.cpu_count()}{' amx' if has_amx() else ''}"}


def print_csv(rows):
    writer = csv.DictWriter(sys.stdout, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)

#!/usr/bin/env python3
"""The weight path against the machine: bytes a second, peak memory, share of its rate.

Makes a checkpoint of a few layers of the real shape with random weights, quantizes it without
prompts to W8A16, and prints CSV. Needs 1.7 GB of disk a layer, and half as much for the output.
With --retype an output that was calibrated with a few tokens and m3 is given the schemes that the
flags say, instead ("" leaves them).

    bench/bench_weights.py [--shape llama-3.1-70b] [--layers 3] [--runs 5] [--model FOLDER]
                           [--retype "--scheme w8a8_dynamic"]

The machine's own rates are measured in the same sitting, between the runs: large direct reads of
the checkpoint's files; direct writes; both at once, in the proportion of the run; and copying in memory
on all cores. The bound that `share` compares with is the time of reading all input and writing
all output at once (`both_seconds`), as no order of work can be faster; `share_apart` compares with
the longer of reading all and writing all, as if neither slowed the other. Verification, which reads
the output again, is measured apart. The machine may be shared: each run is compared with the
rates measured right after it, and the medians over the runs are printed.
"""
import argparse
import functools
import json
import mmap
import os
import pathlib
import shlex
import shutil
import statistics
import sys
import threading
import time

import measure
import numpy as np

PIECE = 8 << 20
READERS = 2  # as many requests at a time as tare has
COPY_BYTES = 256 << 20


def timed(*jobs):
    """Seconds until all jobs, each on a thread of its own, are done."""
    threads = [threading.Thread(target=job) for job in jobs]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - start


def read_files(paths, first):
    """Every READERS-th piece of each file, beginning with number `first`."""
    buffer = mmap.mmap(-1, PIECE)
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        size = os.fstat(fd).st_size
        for at in range(first * PIECE, size, READERS * PIECE):
            os.preadv(fd, [buffer], at)
        os.close(fd)


def write_file(path, size):
    buffer = mmap.mmap(-1, PIECE)
    buffer.write(os.urandom(PIECE))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
    os.posix_fallocate(fd, 0, size)
    for at in range(0, size, PIECE):
        os.pwrite(fd, buffer, at)
    os.fsync(fd)
    os.close(fd)
    path.unlink()


def copy_rate():
    """Bytes read and written a second by copying on all cores."""
    def job(target, source):
        return lambda: np.copyto(target, source)
    pairs = [(np.zeros(COPY_BYTES, np.uint8), np.ones(COPY_BYTES, np.uint8))
             for _ in range(os.cpu_count())]
    jobs = [job(*pair) for pair in pairs]
    return max(2 * COPY_BYTES * len(pairs) / timed(*jobs) for _ in range(3))


def machine(model, out_bytes, work):
    """Seconds that the disk alone needs: reading all, writing all, both at once."""
    files = sorted(model.glob("*.safetensors"))
    size = -(-out_bytes // PIECE) * PIECE

    def write():
        write_file(work / "written", size)
    readers = [functools.partial(read_files, files, i) for i in range(READERS)]
    return {"read": timed(*readers), "write": timed(write), "both": timed(*readers, write)}


def calibrate(args, model):
    """An output with statistics, for --retype."""
    out, ids = args.work / "weights-first", args.work / "weights-ids.json"
    ids.write_text(json.dumps([list(range(1, 65))] * 2))
    shutil.rmtree(out, ignore_errors=True)
    measure.run([args.tare, "quantize", model, "--out", out, "--calib", ids, "--anti-method", "m3",
                 "--quiet", "--no-verify"])
    return out


def quantize(args, model, out, *flags):
    """The summary that tare prints, and the peak of its resident memory."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    how = (["retype", args.first, "--base", model, *shlex.split(args.retype)] if args.first else
           ["quantize", model, "--scheme", "w8a16"])
    _, peak, text = measure.run([args.tare, *how, "--out", out, "--quiet", "--json", *flags])
    return json.loads(text), peak


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--shape", default="llama-3.1-70b")
    ap.add_argument("--layers", type=int, default=3)
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--model", type=pathlib.Path, help="a checkpoint that is there already")
    ap.add_argument("--tare", type=pathlib.Path, default=measure.ROOT / "build/release/tare")
    ap.add_argument("--work", type=pathlib.Path, default=measure.ROOT / "build/bench")
    ap.add_argument("--retype", help="flags of tare retype")
    args = ap.parse_args()

    model, out = args.model or args.work / f"{args.shape}-{args.layers}", args.work / "weights-out"
    if not args.model:
        measure.run([sys.executable, measure.ROOT / "examples/make_random_checkpoint.py", model,
                     "--shape", args.shape, "--layers", args.layers])
    args.first = None if args.retype is None else calibrate(args, model)
    rows, peak = [], 0
    for _ in range(args.runs):
        result, memory = quantize(args, model, out, "--no-verify")
        rows.append(machine(model, result["bytes_out"], args.work)
                    | {"seconds": result["seconds"]})
        peak = max(peak, memory)
    verified, _ = quantize(args, model, out)
    shutil.rmtree(out)
    if args.first:
        shutil.rmtree(args.first)
    if not args.model:
        shutil.rmtree(model)

    copy = copy_rate()  # last: its memory would count as the children's
    moving = (result["bytes_in"] + result["bytes_out"]) / copy
    for row in rows:
        row["share"] = max(row["both"], moving) / row["seconds"]
        row["share_apart"] = max(row["read"], row["write"], moving) / row["seconds"]
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    measure.print_csv([measure.stamp() | {
        "bench": model.name, "gb_in": f"{result['bytes_in'] / 1e9:.2f}",
        "gb_out": f"{result['bytes_out'] / 1e9:.2f}", "seconds": f"{median['seconds']:.2f}",
        "verified_seconds": f"{verified['seconds']:.2f}",
        "in_gbs": f"{result['bytes_in'] / median['seconds'] / 1e9:.2f}",
        "peak_mib": f"{peak / 2**20:.1f}",
        "disk_read_gbs": f"{result['bytes_in'] / median['read'] / 1e9:.2f}",
        "disk_write_gbs": f"{result['bytes_out'] / median['write'] / 1e9:.2f}",
        "both_seconds": f"{median['both']:.2f}", "memory_gbs": f"{copy / 1e9:.1f}",
        "share": f"{median['share']:.2f}", "share_apart": f"{median['share_apart']:.2f}"}])


if __name__ == "__main__":
    main()

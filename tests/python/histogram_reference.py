"""A slow, literal version of the histogram observer of spec/w8a8.md 4.4, written from the spec alone.

It makes tests/data/histogram_reference.safetensors: inputs `CASE|input|I` (F32) and the ranges after
each sample, `CASE|range` (F64, [samples, 2]). tests/unit/test_observer.c feeds the inputs to the
observer and compares. Run: python histogram_reference.py ../data/histogram_reference.safetensors
"""

import math
import sys
from fractions import Fraction

import numpy as np

BINS, SUB_BINS, LEVELS = 2048, 128, 256
LITERAL_SLOTS = 1 << 24  # up to so many the slots are laid out one by one


def count(x, a, b):
    h = np.zeros(BINS)
    if a == b:
        h[0] = len(x)
        return h
    for v in x:
        if a <= v <= b:
            h[min(math.floor((v - a) * BINS / (b - a)), BINS - 1)] += 1
    return h


def spread(h, start, scale):
    """h'[k] = (sum of slots k*scale .. k*scale+scale-1) / SUB_BINS."""
    start, scale = int(start), int(scale)
    if BINS * scale <= LITERAL_SLOTS:
        slots = np.zeros(BINS * scale)
        slots[start : start + BINS * SUB_BINS] = np.repeat(h, SUB_BINS)
        return slots.reshape(BINS, scale).sum(axis=1) / SUB_BINS
    out = [Fraction(0)] * BINS
    for i in range(BINS):
        begin, end = start + i * SUB_BINS, start + (i + 1) * SUB_BINS
        for k in range(begin // scale, (end - 1) // scale + 1):
            inside = min(end, (k + 1) * scale) - max(begin, k * scale)
            out[k] += Fraction(h[i]) * inside / SUB_BINS
    return np.array([float(v) for v in out])


class Histogram:
    def __init__(self):
        self.h = None

    def update(self, x):
        x = [float(v) for v in x]
        if self.h is None:
            self.mn, self.mx = min(x), max(x)
            self.h = count(x, self.mn, self.mx)
            return
        nm, nM = min(self.mn, min(x)), max(self.mx, max(x))
        hb = (self.mx - self.mn) / (BINS * SUB_BINS)
        if hb > 0:
            D = math.ceil((nM - nm) / (BINS * hb))
            nM += hb * BINS * D - (nM - nm)
            st = round((self.mn - nm) / hb)
        new = count(x, nm, nM)
        if nm == self.mn and nM == self.mx:
            self.h = self.h + new
        elif hb > 0:
            self.h = new + spread(self.h, st, D)
        else:
            new[min(math.floor((self.mn - nm) * BINS / (nM - nm)), BINS - 1)] += self.h.sum()
            self.h = new
        self.mn, self.mx = nm, nM

    def error(self, a, z, bw):
        dw = bw * (z - a + 1) / LEVELS
        if dw == 0:
            return 0.0
        i = np.arange(BINS)
        p = (i - a) * bw
        q = p + bw
        jp = np.clip(np.floor(p / dw), 0, LEVELS - 1)
        jq = np.clip(np.floor(q / dw), 0, LEVELS - 1)

        def norm(u, v):
            return (self.h / bw) * (v**3 - u**3) / 3

        e = norm(p - (jp + 0.5) * dw, dw / 2) + (jq - jp - 1) * norm(-dw / 2, dw / 2)
        e = e + norm(-dw / 2, q - (jq * dw + dw / 2))
        return math.fsum(e)

    def range(self):
        bw = (self.mx - self.mn) / BINS
        C = np.cumsum(self.h)
        total = float(C[-1])
        a, z, al, be, best = 0, BINS - 1, 0.0, 1.0, math.inf
        while al < be:
            na, nb = al + 1e-5, be - 1e-5
            l, r = a, z
            while l < z and C[l] < na * total:
                l += 1
            while r > a and C[r] > nb * total:
                r -= 1
            if l - a > z - r:
                candidate, al = (l, z), na
            else:
                candidate, be = (a, r), nb
            if candidate == (a, z):
                continue
            e = self.error(*candidate, bw)
            if e > best:
                break
            best, (a, z) = e, candidate
        return self.mn + bw * a, self.mn + bw * (z + 1)


def cases():
    rng = np.random.default_rng(20240607)
    normal, uniform = rng.standard_normal, rng.random
    yield "normal", [normal(n) for n in (700, 300, 1200)]
    yield "laplace", [rng.laplace(size=n) * s for n, s in ((500, 1), (900, 1.7), (400, 0.4))]
    yield "uniform", [uniform(1500) * 4 - 1, uniform(300) * 3]
    yield "growing", [normal(400) * 2.0**i for i in range(5)]
    yield "positive", [uniform(400) + 3, uniform(200) * 5 + 3]
    yield "negative", [-uniform(400) - 2, -uniform(200) * 5 - 2]
    yield "outliers", [np.append(normal(2000), [80, -95]), normal(500), np.append(normal(300), 120)]
    gate = normal(1500) * 2
    yield "silu", [gate / (1 + np.exp(-gate)), gate[:300] * 0.1]
    yield "constant", [np.full(50, 1.5), np.full(20, 1.5)]
    yield "constant_then_wide", [np.full(50, 0.25), normal(800), normal(300) * 3]
    yield "zero_then_wide", [np.zeros(64), normal(500)]
    yield "tiny_then_wide", [normal(100) * 1e-30, normal(600), normal(200) * 1e4]
    yield "two_values", [np.repeat([0.0, 1.0], 300), np.repeat([0.0, 1.0], 50)]
    yield "one_element", [np.array([2.0]), np.array([-3.0]), np.array([0.5])]
    yield "centred_with_tails", [np.append(normal(1500) * 1e-3, uniform(500) * 2 - 1)]


def main(path):
    from safetensors.numpy import save_file

    tensors = {}
    for name, samples in cases():
        observer, ranges = Histogram(), []
        for i, sample in enumerate(samples):
            x = np.asarray(sample, dtype=np.float32)
            tensors[f"{name}|input|{i}"] = x
            observer.update(x)
            ranges.append(observer.range())
        tensors[f"{name}|range"] = np.array(ranges, dtype=np.float64)
    save_file(tensors, path)


if __name__ == "__main__":
    main(sys.argv[1])

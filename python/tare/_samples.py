"""Tokenized calibration data, as scripts give it, as arrays of token ids.

calib_data is a list; an element is a list [input_ids] or [input_ids, attention_mask], or a dict
with these names; tensors are torch's or numpy's, [n] or [rows, n]. Each row is a sample of its own,
without the positions whose attention_mask is 0; in compat mode an element is a sample, padding included.
"""
import numpy as np

from . import _native
from ._checks import check_type
from ._log import logger
from ._native import ffi, lib


def as_array(value, name):
    """A numpy view of a torch tensor or an array; TypeError for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # torch's, without importing torch
        return value.detach().cpu().numpy()
    if isinstance(value, (list, tuple)):
        return np.asarray(value)
    raise TypeError(f"{name} must be a tensor of token ids, not {type(value).__name__}.")


def _rows(value, name):
    array = as_array(value, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, not {array.dtype}.")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise ValueError(f"{name} must have the shape [rows, tokens], not {list(array.shape)}.")
    return array


def _parts(item, name):
    """(input_ids, attention_mask or None) of an element."""
    if isinstance(item, dict):
        if "input_ids" not in item:
            raise ValueError(f"{name} has no input_ids")
        known = {"input_ids", "attention_mask", "token_type_ids"}
        odd = [k for k in item if k not in known and item[k] is not None]
        if odd:
            raise ValueError(f"{name} has {odd[0]!r}; possible: input_ids, attention_mask")
        return item["input_ids"], item.get("attention_mask")
    if len(item) > 2 and any(x is not None for x in item[2:]):
        raise ValueError(f"{name} has {len(item)} tensors; possible: [input_ids] or [input_ids, "
                         "attention_mask]")
    return item[0], item[1] if len(item) > 1 else None


def _elements(calib_data, name):
    """(name, ids, which of them are no padding) of each element, both [rows, tokens]."""
    check_type(calib_data, list, name)
    for i, item in enumerate(calib_data):
        where = f"{name}[{i}]"
        if not isinstance(item, dict) and hasattr(item, "keys") and hasattr(item, "data"):
            item = dict(item)  # transformers' BatchEncoding
        check_type(item, (list, tuple, dict), where)
        if len(item) < 1:
            raise ValueError(f"{where}: Each data in {name} must not be empty.")
        ids, mask = _parts(item, where)
        ids = _rows(ids, where)
        keep = np.ones(ids.shape, bool) if mask is None else _rows(mask, f"{where} mask") != 0
        if keep.shape != ids.shape:
            raise ValueError(f"{where}: attention_mask has the shape {list(keep.shape)}, input_ids "
                             f"{list(ids.shape)}")
        if ids.size and (ids.min() < 0 or ids.max() >= 2**32):
            raise ValueError(f"{where}: token id {int(ids.min() if ids.min() < 0 else ids.max())} "
                             "is out of range")
        if not keep.any(axis=1).all():
            raise ValueError(f"{where}: a sample without tokens")
        yield where, ids.astype(np.uint32), keep


def token_ids(calib_data, name="calib_data"):
    """A list of uint32 arrays, a sample each. TypeError or ValueError that names the element."""
    return [row[kept] for _, ids, keep in _elements(calib_data, name)
            for row, kept in zip(ids, keep)]


class Batches(list):
    """As token_ids gives, but an element is a sample, its rows one after the other with the padding
    behind them: msModelSlim observes it at once. `sequences`: rows of each sample; `kept`: of each
    row, its tokens before the padding."""

    def __init__(self, calib_data, name="calib_data"):
        super().__init__()
        self.sequences, self.kept = [], []
        for where, ids, keep in _elements(calib_data, name):
            lengths = keep.sum(axis=1)
            if (keep == (np.arange(ids.shape[1]) < lengths[:, None])).all():
                self._add(ids, lengths)
                continue
            logger.warning("%s is padded in front: its rows are samples of their own, without the "
                           "padding, which msModelSlim observes too", where)
            for row, kept in zip(ids, keep):
                self._add(row[kept][None], [kept.sum()])

    def are_plain(self):
        """Whether each sample is one sequence without padding."""
        return self.kept == [sample.size for sample in self]

    def _add(self, rows, kept):
        self.append(rows.reshape(-1))
        self.sequences.append(len(rows))
        self.kept += [int(n) for n in kept]


def samples_of(calib_data, compat):
    """What a run with this `compat` takes for its samples."""
    return Batches(calib_data) if compat else token_ids(calib_data)


class QuantizeOptions:
    """tare_quantize_options, `.c`, of a tare_model, a tare_recipe and samples, which this object
    holds: ids one sample after the other, and lengths; NULL for none."""

    def __init__(self, model, samples, recipe):
        self._keep = model, recipe
        self._ids = np.concatenate(samples) if samples else np.empty(0, np.uint32)
        self._lengths = ffi.new("size_t[]", [s.size for s in samples])
        self.c = _native.options("tare_quantize_options")
        self.c.source, self.c.recipe = model, recipe
        self._buffer = ffi.from_buffer("uint32_t[]", self._ids) if samples else ffi.NULL
        self.c.calib_ids = self._buffer
        self.c.calib_lengths = self._lengths if samples else ffi.NULL
        self.c.calib_count = len(samples)
        if isinstance(samples, Batches) and not samples.are_plain():
            self._sequences = ffi.new("size_t[]", samples.sequences)
            self._kept = ffi.new("size_t[]", samples.kept)
            self.c.calib_sequences, self.c.calib_kept = self._sequences, self._kept

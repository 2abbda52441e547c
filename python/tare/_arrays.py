"""Token ids between Python and C: numpy arrays, torch tensors, lists."""
import sys

import numpy as np

from ._native import ffi
from ._samples import as_array


def is_torch(value):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_torch(array):
    import torch
    return torch.from_numpy(np.ascontiguousarray(array))


def one_sequence(ids, name):
    """uint32 [n] of ids [n] or [1, n]."""
    array = as_array(ids, name)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    return _checked(array, 1, name)


def _checked(array, dimensions, name):
    if array.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension{'s'[:dimensions - 1]}, not the "
                         f"shape {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, not {array.dtype}.")
    if array.size and (array.min() < 0 or array.max() >= 2**32):
        raise ValueError(f"{name} holds an id that is out of range")
    return np.ascontiguousarray(array, dtype=np.uint32)


def u32(array):
    """A C pointer to a uint32 array, which it keeps alive."""
    return ffi.from_buffer("uint32_t[]", array)


class Batch:
    """input_ids and attention_mask, [rows, n]."""

    def __init__(self, input_ids, attention_mask=None):
        self.torch = is_torch(input_ids)
        array = as_array(input_ids, "input_ids")
        self.ids = _checked(array[None] if array.ndim == 1 else array, 2, "input_ids")
        self.mask = np.ones(self.ids.shape, bool)
        if attention_mask is not None:
            mask = as_array(attention_mask, "attention_mask")
            self.mask = (mask[None] if mask.ndim == 1 else mask) != 0
        if self.mask.shape != self.ids.shape:
            raise ValueError(f"attention_mask has the shape {list(self.mask.shape)}, input_ids "
                             f"{list(self.ids.shape)}")

    def rows(self):
        """Each row without its padding."""
        return [np.ascontiguousarray(ids[keep]) for ids, keep in zip(self.ids, self.mask)]

    def extended(self, new, pad):
        """int64 [rows, n + longest]: the rows as given, then the new ids, then `pad`."""
        n = self.ids.shape[1]
        out = np.full((len(new), n + max(map(len, new), default=0)), pad, np.int64)
        out[:, :n] = self.ids
        for row, ids in zip(out, new):
            row[n:n + len(ids)] = ids
        return out

    def like_input(self, array):
        return to_torch(array) if self.torch else array

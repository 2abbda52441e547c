"""Writes tests/data/npy/: a dict of torch tensors and an array as numpy.save pickles it, in the
protocols of numpy 2 (4) and numpy 1 (3). Made with numpy 2.4.6 and torch 2.13; keys of storages are
addresses and differ from run to run."""
import pathlib
import pickle

import numpy as np
import torch

storage = torch.tensor([9, 7, -2], dtype=torch.int8)
values = {
    "w": torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16),
    "v": storage[1:],  # a part of a larger storage
    "n": np.array([0.5], dtype=np.float32),
}
boxed = np.empty((), dtype=object)
boxed[()] = values
folder = pathlib.Path(__file__).parent / "npy"
for protocol in (3, 4):
    with open(folder / f"torch-protocol{protocol}.npy", "wb") as f:
        np.lib.format.write_array_header_1_0(
            f, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(boxed, f, protocol=protocol)

"""Reads and writes safetensors with numpy alone, an implementation of its own beside the C one.

BF16 has no numpy dtype: its values come as float32, and the tag tells what is stored. F8_E4M3 are
bytes.
"""
import json
import pathlib
import struct
from typing import NamedTuple

import numpy as np

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
         "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1"}


class Tensor(NamedTuple):
    tag: str  # dtype as the file says it: "BF16", "I8", ...
    data: np.ndarray


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(x):
    """Bits of `x` rounded to BF16, half to even (finite values)."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def round_to(x, tag):
    """`x` as float32, rounded to the dtype that `tag` names."""
    x = np.asarray(x, dtype=np.float32)
    if tag == "BF16":
        return bf16_to_f32(f32_to_bf16(x))
    return x.astype(np.float16).astype(np.float32) if tag == "F16" else x


def header(path):
    """The JSON header and the bytes after it."""
    blob = pathlib.Path(path).read_bytes()
    size, = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8:8 + size]), blob[8 + size:]


def read(path):
    """{name: Tensor} of one safetensors file."""
    head, data = header(path)
    tensors = {}
    for name, info in head.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        x = np.frombuffer(data[begin:end], NUMPY[info["dtype"]]).reshape(info["shape"])
        tensors[name] = Tensor(info["dtype"], bf16_to_f32(x) if info["dtype"] == "BF16" else x)
    return tensors


def read_folder(folder):
    """{name: Tensor} of every safetensors file of a folder."""
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        for name, tensor in read(path).items():
            assert name not in tensors, f"{name} stands in two files"
            tensors[name] = tensor
    return tensors


def write(path, tensors):
    """Writes {name: Tensor or (tag, float array)}; BF16 rounds."""
    head, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, (tag, x) in tensors.items():
        x = np.asarray(x)
        blob = (f32_to_bf16(x) if tag == "BF16" else x.astype(NUMPY[tag])).tobytes()
        head[name] = {"dtype": tag, "shape": list(x.shape),
                      "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    write_raw(path, json.dumps(head).encode(), b"".join(blobs))


def write_raw(path, head, data):
    """A container with exactly this header text (padded to 8 bytes) and these data bytes."""
    head += b" " * (-len(head) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(head)) + head + data)

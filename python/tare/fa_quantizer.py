"""FAQuantizer: INT8 scales of q, k and v inside a user's own attention module."""
import enum
import logging
import sys

import numpy as np

from ._checks import check_number, check_type
from ._context import NEW, shared_context
from ._native import encode, ffi, lib

_LAYOUTS = ("BHSD", "BSHD")
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


class TensorType(enum.Enum):
    """What quant() is given."""

    Q = "q"
    K = "k"
    V = "v"

    @classmethod
    def get_values(cls):
        return [kind.value for kind in cls]


_ALL = {kind.value for kind in TensorType}


def _is_tensor(value):
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


class _View:
    """A 4-D tensor as C reads it in place: pointer, shape and strides, heads second."""

    def __init__(self, tensor, layout):
        self.dtype = str(tensor.dtype).rsplit(".", 1)[-1]
        if self.dtype not in _DTYPES:
            raise TypeError(f"states_tensor must be float32, float16, bfloat16 or float64, not "
                            f"{self.dtype}.")
        if isinstance(tensor, np.ndarray):
            if any(stride % tensor.itemsize for stride in tensor.strides):
                tensor = np.ascontiguousarray(tensor)
            pointer = tensor.ctypes.data
            strides = [stride // tensor.itemsize for stride in tensor.strides]
        else:
            tensor = tensor.detach().cpu()
            pointer, strides = tensor.data_ptr(), list(tensor.stride())
        axes = (0, 1, 2, 3) if layout == "BHSD" else (0, 2, 1, 3)
        self.owner, self.dtype_text = tensor, encode(_DTYPES[self.dtype])
        self.c = ffi.new("tare_fa_tensor *")
        self.c.dtype, self.c.data = self.dtype_text, ffi.cast("void *", pointer)
        self.c.shape = [tensor.shape[axis] for axis in axes]
        self.c.strides = [strides[axis] for axis in axes]


class FAQuantizer:
    """Observes the q, k and v that pass through quant(), which gives back what it was given.

        self.fa_quantizer = FAQuantizer(config, logger)                     # in __init__
        query_states = self.fa_quantizer.quant(query_states, qkv="q")       # in forward, and k, v

    Between enable_calibration() and disable_calibration() each call is an observation. layout:
    "BHSD", [batch, heads, tokens, channels], or "BSHD". A Calibrator does not need these members: C
    observes q, k and v of the models it knows by itself; they are for models of one's own.
    """

    def __init__(self, config, logger, *, layout="BHSD"):
        check_type(logger, logging.Logger, "logger")
        for name in ("num_attention_heads", "hidden_size"):
            if not hasattr(config, name):
                raise AttributeError(f"FAQuantizer's config needs attributes: '{name}'")
        check_type(config.num_attention_heads, int, "num_attention_heads in config")
        check_type(config.hidden_size, int, "hidden_size in config")
        if not hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = config.num_attention_heads
            logger.warning("Failed to obtain `num_key_value_heads`, assuming Multi-head Attention "
                           "by default.")
        check_type(config.num_key_value_heads, int, "num_key_value_heads in config")
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if heads == 0:
            raise ValueError("`num_attention_heads` cannot be zero.")
        self.logger, self.layout = logger, self._layout(layout)
        if kv_heads != heads:
            logger.info("Using Grouped Query Attention (GQA): num_key_value_heads=%r, num_head=%r",
                        kv_heads, heads)
        self.set_head_params(heads, config.hidden_size // heads, kv_heads)
        self.is_calib = False
        self._clear()

    @staticmethod
    def _layout(layout):
        if layout not in _LAYOUTS:
            raise ValueError(f"layout {layout!r} is not known; possible: {', '.join(_LAYOUTS)}")
        return layout

    def _clear(self):
        self._observers = {}  # of "q", "k", "v": C observer
        self._seen = set()    # in the present forward
        self._scale_type = {}  # of "q", "k", "v": (dtype name, whether torch's)
        self._warned = False

    def __getstate__(self):
        """A copy (deepcopy, pickle) starts without observations."""
        state = dict(self.__dict__)
        state.update(_observers={}, _seen=set(), _scale_type={})
        return state

    # ---- the reference's methods

    def configure(self, bit, sym, tp_size=1):
        """Only 8 bits, symmetric, without tensor parallelism."""
        for name, value, possible in (("bit", bit, 8), ("sym", sym, True), ("tp_size", tp_size, 1)):
            if value != possible or isinstance(value, bool) != isinstance(possible, bool):
                raise ValueError(f"{name} can only be {possible}, not {value!r}")

    def set_head_params(self, num_head, head_dim, num_kv_head):
        self.num_head, self.head_dim, self.num_kv_head = num_head, head_dim, num_kv_head

    def enable_calibration(self):
        """Forgets everything and begins to observe."""
        self._clear()
        self.is_calib = True

    def disable_calibration(self):
        """Ends observing; RuntimeError if the last forward lacked one of q, k and v."""
        self.is_calib = False
        if self._seen:
            self._require(self._seen)

    def is_calibrated(self):
        return set(self._observers) == _ALL

    def reset(self):
        """Forgets everything."""
        self._clear()

    def record_once(self):
        """Does nothing: what fa_amp needs of the first observation is always kept."""

    def quant(self, states_tensor, qkv, *, layout=None):
        """The same object, unchanged. While calibrating it is observed: in place on the CPU,
        through a host copy elsewhere."""
        if not _is_tensor(states_tensor):
            raise TypeError(f"states_tensor must be Tensor, not {type(states_tensor).__name__}.")
        if not self.is_calib:
            return states_tensor
        kind = TensorType(qkv).value
        if len(states_tensor.shape) != 4:
            raise ValueError("not enough values to unpack (expected 4, got "
                             f"{len(states_tensor.shape)})" if len(states_tensor.shape) < 4 else
                             "too many values to unpack (expected 4)")
        view = _View(states_tensor, self.layout if layout is None else self._layout(layout))
        if kind in self._seen:  # the next forward
            self._require(self._seen)
            self._seen = set()
        self._check_heads(kind, view.c.shape[1])
        shared_context().call(lib.tare_fa_observer_add, self._observer(kind), view.c)
        self._seen.add(kind)
        self._scale_type.setdefault(kind, (view.dtype, not isinstance(view.owner, np.ndarray)))
        return states_tensor

    def export_quant_params(self):
        """((q, k, v scales), (q, k, v offsets)), each [heads, 1]: scales in the dtype observed,
        offsets int8 zeros; torch tensors if torch tensors were observed."""
        self._require(set(self._observers))
        if self._seen:
            self._require(self._seen)
        pairs = [self._params(kind) for kind in TensorType.get_values()]
        return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)

    # ---- inside

    @staticmethod
    def _require(seen):
        if seen != _ALL:
            raise RuntimeError(f"Missing qkv types:{_ALL - seen}. Please ensure all {_ALL} are "
                               "processed.")

    def _check_heads(self, kind, heads):
        expected = self.num_head if kind == "q" else self.num_kv_head
        if heads != expected and not self._warned:
            self._warned = True
            self.logger.warning("%s has %d heads, the config says %d: scales go by the tensor.",
                                kind, heads, expected)

    def _observer(self, kind):
        if kind not in self._observers:
            context = shared_context()
            self._observers[kind] = context.create("tare_fa_observer", lib.tare_fa_observer_create,
                                                   context.handle, encode("FAQuantizer"),
                                                   kind.encode(), NEW)
        return self._observers[kind]

    def _params(self, kind):
        dtype, is_torch = self._scale_type[kind]
        observer = self._observers[kind]
        scales = np.empty((lib.tare_fa_observer_heads(observer), 1), np.float32)
        rounded_to = _DTYPES["float32" if dtype == "float64" else dtype]
        shared_context().call(lib.tare_fa_observer_scales, observer, encode(rounded_to),
                              ffi.cast("float *", scales.ctypes.data))
        offsets = np.zeros(scales.shape, np.int8)
        if not is_torch:
            return scales.astype(dtype), offsets
        import torch
        return torch.from_numpy(scales).to(getattr(torch, dtype)), torch.from_numpy(offsets)

    def _scores(self):
        return [lib.tare_fa_observer_score(self._observers[kind])
                for kind in TensorType.get_values()]


def fa_tensors(quantizers, fa_amp=0):
    """{tensor name: tensor} of a whole model's FA scales and offsets, as a checkpoint holds them.

    quantizers: {attention's name: FAQuantizer}, in module order. The fa_amp modules that are
    hardest to quantize, by their first observation, are left out."""
    check_type(quantizers, dict, "quantizers")
    check_number(fa_amp, int, 0, None, "fa_amp")
    params = {name: quantizer.export_quant_params() for name, quantizer in quantizers.items()}
    names = [encode(name) for name in params]
    scores = ffi.new("float[]", [s for q in quantizers.values() for s in q._scores()])
    fallback = ffi.new("bool[]", len(names))
    context = shared_context()
    context.call(lib.tare_fa_fall_back, context.handle, ffi.new("char *[]", names), len(names),
                 scores, fa_amp, fallback)
    return {f"{name}.fa_{kind}.{what}": values[i]
            for skip, (name, pair) in zip(fallback, params.items()) if not skip
            for what, values in zip(("scale", "offset"), pair)
            for i, kind in enumerate(TensorType.get_values())}

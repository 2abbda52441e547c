"""tare.load and its model: a checkpoint on disk that C reads, layer by layer or at once."""
import contextlib
import os
import pathlib

import numpy as np

from . import _arrays, _memory, _native
from ._context import NEW, Context, shared_context
from ._devices import CPU, is_accelerator
from ._log import logger
from ._native import encode, ffi, lib
from .config import read_json

_DTYPES = ("bfloat16", "float16", "float32")
# Arguments of transformers' from_pretrained that change nothing here: what they ask for is either
# done in any case (weights are read as they are needed) or of no meaning on the host.
_WITHOUT_EFFECT = ("trust_remote_code", "local_files_only", "low_cpu_mem_usage", "use_safetensors",
                   "attn_implementation", "use_cache", "config", "offload_folder",
                   "offload_state_dict", "cache_dir", "token", "use_flash_attention_2")


def dtype_name(dtype):
    """"bfloat16" of a string or a torch dtype; None of None and "auto"."""
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).rsplit(".", 1)[-1]
    if name not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; possible: {', '.join(_DTYPES)}, auto")
    return name


def checkpoint_folder(path):
    """`path` as a string; FileNotFoundError if it is no folder (nothing is downloaded)."""
    folder = pathlib.Path(os.fspath(path))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; tare reads checkpoints from the disk "
                                "and downloads nothing")
    return str(folder)


def check_device_map(device_map):
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    for place in places:
        if is_accelerator(place):
            logger.warning("device_map %r: tare computes on the CPU.", place)
        elif place not in (None, "auto", "cpu", "balanced", "sequential", "disk"):
            logger.warning("device_map %r is not a device of this build: tare computes on the CPU.",
                           place)


def load(path, max_memory=None, device_map="auto", *, dtype=None, threads=0):
    """Opens a checkpoint folder; config.json and the headers of the weight files are checked, no
    weight is read.

    max_memory: {"cpu": "8GiB"}: a limit for all that this model does; None: none for loading and
    generating what fits, 80 % of what is free for quantizing. dtype: the serving dtype, for which
    scales are rounded (default: as config.json says). device_map is accepted as transformers' is.
    """
    check_device_map(device_map)
    return Model(path, max_memory, dtype_name(dtype), threads)


class Model:
    """A causal language model. It is made by load() or AutoModelForCausalLM.from_pretrained()."""

    def __init__(self, path, max_memory, dtype, threads):
        self.path, self.max_memory, self.serving_dtype = checkpoint_folder(path), max_memory, dtype
        self.memory_limit = limit = _memory.host_bytes(max_memory)
        self.context = Context(limit, threads) if limit or threads else shared_context()
        self.config = read_json(self.path, "config.json", required=True)
        self.generation_config = read_json(self.path, "generation_config.json")
        self.handle = self.context.create("tare_model", lib.tare_model_open, self.context.handle,
                                          encode(self.path), NEW)
        self.vocab_size = lib.tare_model_vocab_size(self.handle)

    name_or_path = property(lambda self: self.path)
    device = property(lambda self: CPU)
    model_type = property(lambda self: self.config.get("model_type"))

    def __repr__(self):
        return f"<tare.Model {self.config.get('model_type')} in {self.path}>"

    @contextlib.contextmanager
    def open(self):
        """The tare_model, as Calibrator and the others take it (tare._sources)."""
        yield self.handle

    # ---- what a script does to every model

    def eval(self):
        return self

    def cpu(self):
        return self

    def to(self, device=None, *_args, **_kwargs):
        if is_accelerator(device):
            logger.warning("model.to(%r): tare computes on the CPU.", str(device))
        return self

    # ---- computing

    def logits(self, ids):
        """FP32 array [n, vocab_size] for one sequence of n token ids."""
        ids = _arrays.one_sequence(ids, "ids")
        out = np.empty((ids.size, self.vocab_size), np.float32)
        self.context.run(lib.tare_model_logits, self.handle, _arrays.u32(ids), ids.size,
                         ffi.cast("float *", out.ctypes.data))
        return out

    def __call__(self, input_ids, attention_mask=None, **ignored):
        """An object with `.logits` [rows, n, vocab_size], each row as if alone: padding (mask 0)
        has no influence, and logits of 0."""
        batch = _arrays.Batch(input_ids, attention_mask)
        logits = np.zeros((*batch.ids.shape, self.vocab_size), np.float32)
        for row, (keep, ids) in enumerate(zip(batch.mask, batch.rows())):
            if ids.size:
                logits[row, keep] = self.logits(ids)
        return Output(batch.like_input(logits))

    forward = __call__

    def generate(self, input_ids=None, attention_mask=None, do_sample=False, max_new_tokens=None, *,
                 inputs=None, temperature=None, top_k=None, top_p=None, repetition_penalty=None,
                 eos_token_id=None, pad_token_id=None, seed=0, scratch_dir=None, num_beams=1,
                 use_cache=True, num_return_sequences=1, **unknown):
        """Prompts with their new tokens, [rows, …], as transformers' generate gives them: shorter
        rows are filled with pad_token_id. Left or right padding of the prompts (mask 0) does not
        touch the result. Without eos_token_id the checkpoint's own end a text; `seed` seeds
        do_sample."""
        if unknown:
            raise TypeError(f"generate() has no argument {next(iter(unknown))!r}")
        if num_beams != 1 or num_return_sequences != 1:
            raise ValueError("num_beams and num_return_sequences can only be 1")
        if (input_ids is None) == (inputs is None):
            raise ValueError("generate() needs input_ids")
        batch = _arrays.Batch(inputs if input_ids is None else input_ids, attention_mask)
        options = _native.options("tare_generate_options")
        if max_new_tokens is not None:
            options.max_new_tokens = max_new_tokens
        options.do_sample, options.seed = do_sample, seed
        for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p),
                            ("repetition_penalty", repetition_penalty)):
            if value is not None:
                setattr(options, name, value)
        keep = encode(scratch_dir), None
        options.scratch_dir = keep[0]
        if eos_token_id is not None:
            ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
            keep = keep[0], ffi.new("uint32_t[]", ends or [0])
            options.eos_ids, options.num_eos = keep[1], len(ends)
        new = self._generate(batch.rows(), options)
        return batch.like_input(batch.extended(new, self._pad_id(pad_token_id, eos_token_id)))

    def _generate(self, prompts, options):
        """The new ids of each prompt."""
        n = len(prompts)
        pointers = ffi.new("uint32_t *[]", [_arrays.u32(p) for p in prompts])
        lengths = ffi.new("size_t[]", [p.size for p in prompts])
        results = ffi.new("tare_generation[]", n)
        self.context.run(lib.tare_generate, self.handle, options,
                         ffi.cast("const uint32_t *const *", pointers), lengths, n, results)
        try:
            return [ffi.unpack(r.ids, r.count) if r.count else [] for r in results]
        finally:
            lib.tare_generations_free(self.context.handle, results, n)

    def _pad_id(self, pad, eos):
        for value in (pad, self.generation_config.get("pad_token_id"),
                      self.config.get("pad_token_id"), eos,
                      self.generation_config.get("eos_token_id"), self.config.get("eos_token_id")):
            if value is not None and value != []:
                return value[0] if isinstance(value, (list, tuple)) else value
        return 0


class Output:
    """What a model's call gives: `.logits`, also as [0] and ["logits"]."""

    def __init__(self, logits):
        self.logits = logits

    def __getitem__(self, key):
        if key in (0, "logits"):
            return self.logits
        raise KeyError(key)


class AutoModelForCausalLM:
    """transformers' name: with this import in its place a script streams instead of loading."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, max_memory=None, device_map="auto",
                        torch_dtype=None, dtype=None, threads=0, **others):
        unknown = [name for name in others if name not in _WITHOUT_EFFECT]
        if unknown:
            raise TypeError(f"from_pretrained() of tare has no argument {unknown[0]!r}")
        return load(pretrained_model_name_or_path, max_memory, device_map,
                    dtype=torch_dtype if dtype is None else dtype, threads=threads)

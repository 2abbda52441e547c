"""CalibrationData: mixed calibration sets. Reading, sampling, mixing and writing are the C
library's; here are Python's types, data sets in Python, and models that are called back."""
import argparse
import errno as errno_codes
import os
import sys

from . import _calib_sets, _native, _verify, errors
from ._checks import check_compat, check_type
from ._context import NEW, Context
from ._log import logger
from ._native import decode, encode, ffi, lib
from .dataset_processor import DatasetProcessorBase
from .model import Model
from .tokenizer import Tokenizer

_MOST = 2**63 - 1


class ArgumentTypeError(argparse.ArgumentTypeError, TypeError):
    """A wrong type, as the reference raises it and as Python does."""


class PathError(errors.FileError, ValueError):
    """A path that cannot be read."""


class MissingPathError(PathError, FileNotFoundError):
    """A path that is not there."""


def _words(seed):
    """32-bit words of |seed|, lowest first, at least one."""
    seed = abs(int(seed))
    words = []
    while seed or not words:
        words.append(seed & 0xffffffff)
        seed >>= 32
    return ffi.new("uint32_t[]", words)


def _check_int(value, allow_bool):
    if not isinstance(value, int) or (isinstance(value, bool) and not allow_bool):
        raise ArgumentTypeError(f"{value!r} is not an int.")


class CalibrationData:
    """A mix of boolq, ceval_5_shot, gsm8k, mmlu, JSON lines and data sets of one's own.

    config_path: docs/calibration.md tells of it. save_path: a .json file that process() writes; ""
    for none. With a model (tare's, or a transformers PreTrainedModel with its tokenizer), only
    samples that it answers right are taken. The keyword arguments win over the config file; compat
    is also set by `python -m tare.run --compat`.

    mixed_dataset: the last result; handlers: {set name: its counts}; skipped: {set name: number of
    bad records}."""

    def __init__(self, config_path="", save_path="", tokenizer=None, model=None, *, compat=None,
                 skip_bad=None, mmlu_shots=None, sample_seed=None, gsm8k_sampling=None,
                 gsm8k_seed=None):
        self.logger, self.model, self.tokenizer = logger, model, tokenizer
        self._check_model()
        check_type(config_path, str, "config_path")
        if not config_path:
            raise ValueError("The value of the path cannot be empty.")
        self.context = model.context if isinstance(model, Model) else Context()
        self._sets, self.mixed_dataset = [], []
        self.batch_size, self.shuffle_seed = 4, 0
        if not isinstance(save_path, str) and save_path is not None:
            self._open(config_path, None, compat, skip_bad, mmlu_shots, sample_seed, gsm8k_sampling,
                       gsm8k_seed)  # its faults come first
            raise TypeError(f"save_path must be str, not {type(save_path).__name__}.")
        self._open(config_path, save_path, compat, skip_bad, mmlu_shots, sample_seed,
                   gsm8k_sampling, gsm8k_seed)
        self.save_path = os.path.abspath(save_path) if save_path else None
        if model is not None:
            self._verifier = _verify.make(self)
            self.context.call(lib.tare_calib_set_verifier, self.handle, self._verifier.c)

    # ---- opening

    def _check_model(self):
        model, tokenizer = self.model, self.tokenizer
        transformers = sys.modules.get("transformers")
        theirs = transformers is not None and isinstance(model, transformers.PreTrainedModel)
        if not (model is None or isinstance(model, Model) or theirs):
            raise TypeError("Invalid model")
        if tokenizer is not None:
            kinds = [Tokenizer] if not theirs else []
            if transformers is not None and not isinstance(model, Model):
                kinds.append(transformers.PreTrainedTokenizerBase)
            if not isinstance(tokenizer, tuple(kinds)):
                raise TypeError("tokenizer must be PreTrainedTokenizerBase, not "
                                f"{type(tokenizer).__name__}.")
        if model is not None:
            _verify.try_out(model, tokenizer)

    def _open(self, config_path, save_path, compat, skip_bad, mmlu_shots, sample_seed,
              gsm8k_sampling, gsm8k_seed):
        options = _native.options("tare_calib_options")
        mode = check_compat(compat)
        keep = [encode(mode if mode else "" if compat == "none" else None)]
        options.compat, options.overwrite = keep[0], True
        for name, value in (("skip_bad", skip_bad), ("gsm8k_sampling", gsm8k_sampling)):
            if value is not None:
                check_type(value, bool, name)
                setattr(options, name, value)
        if mmlu_shots is not None:
            check_type(mmlu_shots, int, "mmlu_shots")
            if not 0 <= mmlu_shots <= 5:
                raise ValueError(f"mmlu_shots must be from 0 to 5, not {mmlu_shots}")
            options.mmlu_shots = mmlu_shots
        for name, value in (("sample_seed", sample_seed), ("gsm8k_seed", gsm8k_seed)):
            if value is not None:
                check_type(value, int, name)
                keep.append(_words(value))
                setattr(options, name, keep[-1])
                setattr(options, f"{name}_words", len(keep[-1]))
        try:
            self.handle = self.context.create("tare_calib", lib.tare_calib_open,
                                              self.context.handle, encode(config_path),
                                              encode(save_path), options, NEW, long=True)
        except errors.TareError as error:
            raise self._path_error(error) from None

    @staticmethod
    def _path_error(error):
        """The class of a path that cannot be read, where the operating system said why."""
        code = error.number
        if not code:
            return error
        kind = MissingPathError if code in (errno_codes.ENOENT, errno_codes.ENOTDIR) else PathError
        path = kind(str(error))
        path.errno = code
        return path

    # ---- what is drawn

    def add_custormized_dataset_processor(self, dataset_name, processor):
        """Adds a set, or replaces the one of this name; its size is 0 until set_sample_size."""
        if not isinstance(dataset_name, str):
            raise ArgumentTypeError(f"{dataset_name!r} is not an str.")
        if not isinstance(processor, DatasetProcessorBase):
            raise ArgumentTypeError(f"{processor!r} is not an DatasetProcessorBase.")
        one = _calib_sets.ProcessorSet(dataset_name, processor, self.context)
        self._sets.append(one)  # C has it even if an interrupt comes late
        self.context.run(lib.tare_calib_add_set, self.handle, encode(dataset_name), one.source)
        self._sets = [s for s in self._sets if s is one or s.name != dataset_name]

    def set_sample_size(self, sample_size):
        """{set name: number of samples}: all of them or, after an error, none."""
        if not isinstance(sample_size, dict):
            raise TypeError("sample_size should be dict")
        names, sizes = [], []
        for name, size in sample_size.items():
            wrong = ("keys should be string" if not isinstance(name, str) else
                     "values should be int" if not isinstance(size, int) or isinstance(size, bool)
                     else None)
            if wrong:
                self._first_fault(names, sizes)
                raise TypeError(f"sample_size {wrong}")
            names.append(name)
            sizes.append(max(-_MOST, min(size, _MOST)))
        self._set_sizes(names, sizes)

    def _first_fault(self, names, sizes):
        """The error of an earlier entry, if it has one; nothing is set."""
        for name, size in zip(names, sizes):
            if size < 0 or name not in self.handlers:
                self._set_sizes([name], [size])

    def _set_sizes(self, names, sizes):
        texts = [encode(name) for name in names]
        self.context.call(lib.tare_calib_set_sizes, self.handle, ffi.new("char *[]", texts), sizes,
                          len(sizes))

    def set_batch_size(self, batch_size):
        """How many samples are handled together; without influence on the result."""
        _check_int(batch_size, False)
        if batch_size == 0:
            raise ValueError("batch_size cant be zero")
        self.context.call(lib.tare_calib_set_batch_size, self.handle,
                          max(-_MOST, min(batch_size, _MOST)))
        self.batch_size = batch_size

    def set_shuffle_seed(self, shuffle_seed):
        """Seeds the last shuffle, and the sampling of sets that are added afterwards."""
        _check_int(shuffle_seed, True)
        words = _words(shuffle_seed)
        self.context.call(lib.tare_calib_set_shuffle_seed, self.handle, words, len(words))
        self.shuffle_seed = shuffle_seed

    def process(self):
        """Draws and mixes; a list of {"prompt", "ans"}, which is saved if there is a save_path. The
        same again gives the same."""
        result = self.context.create("tare_calib_result", lib.tare_calib_process, self.handle, NEW,
                                     long=True)
        entry, entries = ffi.new("tare_calib_entry *"), []
        for i in range(lib.tare_calib_result_count(result)):
            lib.tare_calib_result_entry(result, i, entry)
            entries.append(_calib_sets.sample_dict(entry.sample))
        self.mixed_dataset = entries
        return entries

    # ---- what there is

    @property
    def handlers(self):
        """{set name: {"available", "requested", "delivered", "skipped"}}, in the mix's order."""
        stats, found = _native.sized("tare_calib_stats"), {}
        with self.context.alone:
            for i in range(lib.tare_calib_num_sets(self.handle)):
                name = lib.tare_calib_set_name(self.handle, i)
                self.context.call(lib.tare_calib_get_stats, self.handle, name, stats)
                found[decode(name)] = {key: getattr(stats, key) for key in
                                       ("available", "requested", "delivered", "skipped")}
        return found

    @property
    def skipped(self):
        return {name: counts["skipped"] for name, counts in self.handlers.items()}


def get_calib_dataset(tokenizer, mixed_dataset, device="cpu"):
    """[[ids], …] of a mix for a Calibrator: for each prompt one int64 tensor [1, n], with special
    tokens, not cut and not padded. torch tensors with transformers' tokenizer or when torch is in
    use, else numpy arrays."""
    kind = "np" if isinstance(tokenizer, Tokenizer) and "torch" not in sys.modules else "pt"
    dataset = []
    for entry in mixed_dataset:
        ids = tokenizer(entry["prompt"], return_tensors=kind).input_ids
        dataset.append([ids.to(device) if kind == "pt" else ids])
    return dataset


def get_anti_dataset(tokenizer, mixed_dataset, device="cpu"):
    """The same for an AntiOutlier; nothing is padded."""
    return get_calib_dataset(tokenizer, mixed_dataset, device)

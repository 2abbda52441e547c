"""The part of libtare's C API that tests need, through ctypes (see include/tare/tare.h)."""
import ctypes
import os
from ctypes import (POINTER, byref, c_bool, c_char_p, c_double, c_float, c_int64, c_size_t,
                    c_uint32, c_uint64, c_void_p)

import numpy as np


CPUS = ("auto", "scalar", "avx2", "avx512", "amx")  # tare_cpu


class TareError(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class ContextOptions(ctypes.Structure):
    """tare_context_options"""
    _fields_ = [("size", c_size_t), ("threads", ctypes.c_int), ("memory_limit", c_size_t),
                ("cpu", ctypes.c_int), ("log", c_void_p), ("progress", c_void_p),
                ("allow_allocation", c_void_p), ("user", c_void_p)]


class GenerateOptions(ctypes.Structure):
    """tare_generate_options"""
    _fields_ = [("size", c_size_t), ("max_new_tokens", c_size_t), ("do_sample", c_bool),
                ("temperature", c_double), ("top_k", c_int64), ("top_p", c_double),
                ("repetition_penalty", c_double), ("seed", c_uint64),
                ("records", POINTER(c_uint32)), ("eos_ids", POINTER(c_uint32)),
                ("num_eos", c_size_t), ("batch", c_size_t), ("scratch_dir", c_char_p),
                ("token", c_void_p), ("user", c_void_p)]


class Generation(ctypes.Structure):
    """tare_generation"""
    _fields_ = [("ids", POINTER(c_uint32)), ("count", c_size_t), ("finish", ctypes.c_int)]


class ChatMessage(ctypes.Structure):
    """tare_chat_message"""
    _fields_ = [("role", c_char_p), ("content", c_char_p)]


def id_arrays(prompts):
    """(pointers, lengths, what keeps them alive)"""
    arrays = [(c_uint32 * len(p))(*p) for p in prompts]
    pointers = (POINTER(c_uint32) * len(prompts))(
        *(ctypes.cast(a, POINTER(c_uint32)) for a in arrays))
    return pointers, (c_size_t * len(prompts))(*map(len, prompts)), arrays


class QuantizeOptions(ctypes.Structure):
    """The beginning of tare_quantize_options, as a caller of an older version has it."""
    _fields_ = [("size", c_size_t), ("model", c_char_p), ("source", c_void_p), ("out", c_char_p),
                ("calib", c_char_p), ("calib_ids", POINTER(c_uint32)),
                ("calib_lengths", POINTER(c_size_t)), ("calib_count", c_size_t)]


LAYER_SCORE = ctypes.CFUNCTYPE(ctypes.c_int, c_void_p, c_char_p, ctypes.c_double)


class Library:
    """One context; `Model` and `Tokenizer` handles come from it and are closed with it."""

    def __init__(self, path, threads=0, memory_limit=0):
        self.lib = lib = ctypes.CDLL(str(path))
        for name in ("tare_last_error", "tare_cpu_name", "tare_version"):
            getattr(lib, name).restype = c_char_p
        lib.tare_last_error.argtypes = lib.tare_cpu_name.argtypes = [c_void_p]
        lib.tare_context_options_init_sized.argtypes = [POINTER(ContextOptions), c_size_t]
        lib.tare_context_create.argtypes = [POINTER(c_void_p), c_void_p]
        lib.tare_model_open.argtypes = [c_void_p, c_char_p, POINTER(c_void_p)]
        lib.tare_model_free.argtypes = [c_void_p]
        lib.tare_model_vocab_size.argtypes = [c_void_p]
        lib.tare_model_vocab_size.restype = c_size_t
        lib.tare_model_logits.argtypes = [c_void_p, POINTER(c_uint32), c_size_t, POINTER(c_float)]
        lib.tare_generate.argtypes = [c_void_p, POINTER(GenerateOptions),
                                      POINTER(POINTER(c_uint32)), POINTER(c_size_t), c_size_t,
                                      POINTER(Generation)]
        lib.tare_generations_free.argtypes = [c_void_p, POINTER(Generation), c_size_t]
        lib.tare_last_logprobs.argtypes = [c_void_p, POINTER(GenerateOptions),
                                           POINTER(POINTER(c_uint32)), POINTER(c_size_t), c_size_t,
                                           POINTER(c_uint32), c_size_t, POINTER(c_float)]
        lib.tare_chat_prompt.argtypes = [c_void_p, c_char_p, POINTER(ChatMessage), c_size_t,
                                         POINTER(c_char_p)]
        lib.tare_tokenizer_open.argtypes = [c_void_p, c_char_p, POINTER(c_void_p)]
        lib.tare_tokenizer_free.argtypes = [c_void_p]
        lib.tare_tokenizer_encode.argtypes = [c_void_p, c_char_p, c_size_t, c_bool,
                                              POINTER(POINTER(c_uint32)), POINTER(c_size_t)]
        lib.tare_free.argtypes = [c_void_p, c_void_p]
        self.context = c_void_p()
        lib.tare_quantize_options_init_sized.argtypes = [POINTER(QuantizeOptions), c_size_t]
        lib.tare_score_layers.argtypes = [c_void_p, POINTER(QuantizeOptions), ctypes.c_int,
                                          LAYER_SCORE, c_void_p]
        options = ContextOptions()
        lib.tare_context_options_init_sized(byref(options), ctypes.sizeof(options))
        options.threads = threads
        options.memory_limit = memory_limit
        options.cpu = CPUS.index(os.environ.get("TARE_TEST_CPU", "auto"))  # instruction_sets.py
        self.check(lib.tare_context_create(byref(self.context), byref(options)))

    def check(self, status):
        if status:
            raise TareError(status, self.lib.tare_last_error(self.context).decode())

    def layer_scores(self, folder, samples, method):
        """{linear: score} by "quantile" or "std"; samples are lists of token ids."""
        options, scores = QuantizeOptions(), {}
        self.lib.tare_quantize_options_init_sized(byref(options), ctypes.sizeof(options))
        ids = [i for sample in samples for i in sample]
        options.model = str(folder).encode()
        options.calib_ids = (c_uint32 * len(ids))(*ids)
        options.calib_lengths = (c_size_t * len(samples))(*map(len, samples))
        options.calib_count = len(samples)

        @LAYER_SCORE
        def put(_, name, value):
            scores[name.decode()] = value
            return 0

        self.check(self.lib.tare_score_layers(self.context, byref(options),
                                              ["quantile", "std"].index(method), put, None))
        return scores

    def model(self, folder):
        return Model(self, folder)

    def chat_prompt(self, folder, messages):
        """The text that a chat model expects behind these {"role", "content"} messages."""
        array = (ChatMessage * len(messages))(
            *(ChatMessage(m["role"].encode(), m["content"].encode()) for m in messages))
        text = c_char_p()
        self.check(self.lib.tare_chat_prompt(self.context, str(folder).encode(), array,
                                             len(messages), byref(text)))
        try:
            return text.value.decode()
        finally:
            self.lib.tare_free(self.context, ctypes.cast(text, c_void_p))

    def tokenizer(self, path):
        return Tokenizer(self, path)


class Model:
    def __init__(self, library, folder):
        self.library, self.handle = library, c_void_p()
        library.check(library.lib.tare_model_open(library.context, str(folder).encode(),
                                                  byref(self.handle)))
        self.vocab_size = library.lib.tare_model_vocab_size(self.handle)

    def logits(self, ids):
        """FP32 [len(ids), vocab_size]."""
        out = np.empty((len(ids), self.vocab_size), np.float32)
        self.library.check(self.library.lib.tare_model_logits(
            self.handle, (c_uint32 * len(ids))(*ids), len(ids),
            out.ctypes.data_as(POINTER(c_float))))
        return out

    def options(self, **changes):
        options = GenerateOptions()
        self.library.lib.tare_generate_options_init_sized(byref(options), ctypes.sizeof(options))
        for name, value in changes.items():
            setattr(options, name, value)
        return options

    def generate(self, prompts, **options):
        """New ids of each prompt."""
        pointers, lengths, _ = id_arrays(prompts)
        results = (Generation * len(prompts))()
        self.library.check(self.library.lib.tare_generate(
            self.handle, byref(self.options(**options)), pointers, lengths, len(prompts), results))
        ids = [r.ids[:r.count] for r in results]
        self.library.lib.tare_generations_free(self.library.context, results, len(prompts))
        return ids

    def last_logprobs(self, prompts, ids, **options):
        """FP32 [len(prompts), len(ids)]."""
        pointers, lengths, _ = id_arrays(prompts)
        out = np.empty((len(prompts), len(ids)), np.float32)
        self.library.check(self.library.lib.tare_last_logprobs(
            self.handle, byref(self.options(**options)), pointers, lengths, len(prompts),
            (c_uint32 * len(ids))(*ids), len(ids), out.ctypes.data_as(POINTER(c_float))))
        return out

    def close(self):
        self.library.lib.tare_model_free(self.handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Tokenizer:
    def __init__(self, library, path):
        self.library, self.handle = library, c_void_p()
        library.check(library.lib.tare_tokenizer_open(library.context, str(path).encode(),
                                                      byref(self.handle)))

    def encode(self, text, add_special_tokens=False):
        raw = text.encode()
        ids, count = POINTER(c_uint32)(), c_size_t()
        self.library.check(self.library.lib.tare_tokenizer_encode(
            self.handle, raw, len(raw), add_special_tokens, byref(ids), byref(count)))
        try:
            return ids[:count.value]
        finally:
            self.library.lib.tare_free(self.library.context, ctypes.cast(ids, c_void_p))

    def close(self):
        self.library.lib.tare_tokenizer_free(self.handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
